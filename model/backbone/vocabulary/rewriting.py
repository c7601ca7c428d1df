"""A decoder and its tokenizer with another vocabulary: what trimming and extending share.

Shape letters: V = tokens of the vocabulary, D = hidden size.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

BATCH_TEXTS = 1000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, some at a time."""
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH_TEXTS)):
        yield batch


def ids_of(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Iterator[npt.NDArray[np.int64]]:
    """Tokens of each text, without what the tokenizer puts around it."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return (np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings)


def content_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What tokenizer.json says."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def rewritten(
    tokenizer: PreTrainedTokenizerFast,
    content: dict[str, Any],
    *,
    tokens: int,
    around: Sequence[int],
) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokenizer.json has another content.

    Args:
        tokenizer: Gives all other settings.
        content: Of tokenizer.json.
        tokens: As many has the new vocabulary.
        around: What it must put around a text.

    Raises:
        ValueError: transformers makes another tokenizer of it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():  # vocab.json, tokenizer.model: of the former vocabulary
            if path.name not in TOKENIZER_FILES:
                path.unlink()
        text = json.dumps(content, ensure_ascii=False)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        options = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        options.pop("added_tokens_decoder", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
        other = AutoTokenizer.from_pretrained(folder)
    if len(other) != tokens or other("").input_ids != list(around):
        raise ValueError(
            f"{type(tokenizer).__name__} does not read its own tokenizer.json as it stands, and "
            "its vocabulary cannot be changed: set backbone.vocabulary to keep"
        )
    return other


def require_one_table(decoder: PreTrainedModel) -> None:
    """Check that the embeddings are the only table of a row per token.

    Raises:
        ValueError: There is another one.
    """
    embedding = decoder.get_input_embeddings()
    rows = embedding.weight.shape[0]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]  # a matrix
    tables = {rows, getattr(decoder.config, "vocab_size_per_layer_input", rows)}
    others = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Embedding)
        and module is not embedding
        and module.num_embeddings in tables
    ]
    if others:
        raise ValueError(
            f"{type(decoder).__name__} holds {others[0]} beside its embeddings, of one row per "
            "token: set backbone.vocabulary to keep"
        )


def set_rows(decoder: PreTrainedModel, rows_VD: Tensor) -> None:
    """Give a decoder another table of tokens, in place; ids in its config are left alone."""
    embedding = decoder.get_input_embeddings()
    embedding.weight = nn.Parameter(rows_VD)  # pyright: ignore[reportAttributeAccessIssue]  # a matrix
    embedding.num_embeddings = len(rows_VD)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]  # of nn.Embedding
    decoder.config.vocab_size = len(rows_VD)
