"""What of the response of an embeddings endpoint is believed."""

import base64
import binascii
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.endpoint.failures import HopelessError, UnusableResponseError
from tasks.teach.cache import Vectors
from tasks.teach.vectors import shown, unit_vectors


class Embedded(NamedTuple):
    """The answer to a request."""

    vectors: Vectors
    """Of unit norm, in the order of the texts."""
    tokens: int
    """What they cost, 0 where the endpoint does not say."""


def read_response(response: object, texts: list[str]) -> Embedded:
    """Vectors of the texts, by the index that each bears.

    Raises:
        UnusableResponseError: It is no answer to such a request; asked again, there may be one.
        HopelessError: It is one, but not to these texts, or holds no vectors.
    """
    data = response.get("data") if isinstance(response, dict) else None
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise UnusableResponseError
    if len(data) != len(texts):
        raise HopelessError(f"it gives {len(data)} vectors for {len(texts)} texts")
    indices = [entry.get("index") for entry in data]
    is_known = all(isinstance(index, int) for index in indices)
    if not is_known or sorted(indices) != list(range(len(texts))):
        raise HopelessError(
            f"the indices of its vectors are not 0 to {len(texts) - 1}, so nobody knows which text "
            "each is of"
        )
    by_index = dict(zip(indices, data, strict=True))
    rows = [_numbers(by_index[index].get("embedding"), text) for index, text in enumerate(texts)]
    sizes = sorted({len(row) for row in rows})
    if len(sizes) > 1:
        raise HopelessError(f"it gives vectors of {sizes[0]} and of {sizes[-1]} numbers at once")
    try:
        return Embedded(unit_vectors(np.stack(rows), texts), _tokens(response))
    except ValueError as error:
        raise HopelessError(f"it {error}") from error


def _numbers(embedding: object, text: str) -> npt.NDArray[np.float32]:
    """One vector, a list or base64 of little-endian float32."""
    try:
        if isinstance(embedding, str):
            numbers = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        else:
            with np.errstate(over="ignore"):
                numbers = np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError, binascii.Error):
        numbers = np.zeros(0, dtype=np.float32)
    if numbers.ndim != 1 or not len(numbers):
        raise HopelessError(
            f"it gives something else than a vector for the text {shown(text)}: see that the model "
            "is one of embeddings, with a pooling"
        )
    return numbers


def _tokens(response: Any) -> int:  # noqa: ANN401 - any JSON value
    usage = response.get("usage")
    values = usage if isinstance(usage, dict) else {}
    told = values.get("prompt_tokens") or values.get("total_tokens")
    return told if isinstance(told, int) and told > 0 else 0
