"""What a teacher answers, once it can be believed."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from model.training.data.recorded_vectors import Shown
from tasks.teach.cache import Vectors

SHOWN_CHARACTERS = 60

Keep = Callable[[list[Shown], Vectors, int], None]
"""Takes texts, their vectors and the tokens that they cost, as they are answered."""


def unit_vectors(vectors: npt.NDArray[np.floating], texts: Sequence[str]) -> Vectors:
    """The vectors of the texts, (texts, size), of unit norm.

    Raises:
        ValueError: One is of no use; the message goes on after the name of the teacher.
    """
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    for is_bad, what, why in (
        (
            ~np.isfinite(norms[:, 0]),
            "numbers that are not finite",
            "its weights are damaged, or it overflows in their type",
        ),
        (norms[:, 0] == 0.0, "nothing but zeros", "it knows no letter of them"),
    ):
        if is_bad.any():
            raise ValueError(
                f"answers {what} for {np.count_nonzero(is_bad)} of {len(texts)} texts, such as "
                f"{shown(texts[int(np.flatnonzero(is_bad)[0])])}: {why}; take another teacher"
            )
    return (exact / norms).astype(np.float16)


def shown(text: str) -> str:
    """The beginning of a text, in quotes."""
    return repr(text[:SHOWN_CHARACTERS])
