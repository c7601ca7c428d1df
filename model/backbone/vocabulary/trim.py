"""Trim the vocabulary of a decoder to the tokens that corpora use.

Texts made of kept tokens alone keep them, and so their vectors, exactly; every other text is cut
into smaller kept tokens. Most of a small multilingual decoder is a table of tokens that Russian
texts never use: of Gemma 3 270M, 168 of its 268 million weights. After BiStil (Parović et al. 2023)
and the vocabulary trimming of Ushio et al. 2023 (arXiv 2305.15020).

Shape letters: V = tokens of the vocabulary, D = hidden size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model.backbone.vocabulary.families import (
    always_kept,
    cut_model,
    needs_of,
    tokens_of,
)
from model.backbone.vocabulary.rewriting import (
    batches,
    content_of,
    ids_of,
    require_one_table,
    rewritten,
    set_rows,
)

Counts = npt.NDArray[np.int64]
"""How often each token occurs, shape [V]."""


@dataclass(frozen=True)
class Coverage:
    """What texts are made of, with the vocabulary as it was and as it is now."""

    texts: int
    same: int
    """Texts that keep every token."""
    bytes: int
    """Of all texts, in UTF-8."""
    tokens_before: int
    tokens_after: int


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Counts:
    """How often each token occurs in the texts, without what the tokenizer puts around a text."""
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for batch in batches(texts):
        ids = np.concatenate(list(ids_of(tokenizer, batch)))
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def select_tokens(
    tokenizer: PreTrainedTokenizerFast,
    counts: Counts,
    *,
    min_count: int,
    max_tokens: int | None,
) -> list[int]:
    """Ids of the tokens to keep, ascending.

    Kept are all bytes and single characters, the special tokens, and the most frequent ones, each
    with all that it is merged from.

    Args:
        tokenizer: BPE or Unigram.
        counts: What `count_tokens` found.
        min_count: Least occurrences of a token that is kept for its own sake.
        max_tokens: Most tokens to keep; None sets no bound.

    Raises:
        ValueError: The tokenizer cannot be trimmed, no token is frequent enough, or the bound is
            below what is always kept.
    """
    content = content_of(tokenizer)
    tokens = tokens_of(content["model"]) | {
        added["content"]: added["id"] for added in content["added_tokens"]
    }
    names = {id_: token for token, id_ in tokens.items()}
    needs = needs_of(content["model"])
    kept = always_kept(content["model"]) | {names[id_] for id_ in _special_ids(tokenizer, content)}
    limit = len(names) if max_tokens is None else max_tokens
    if len(kept) > limit:
        raise ValueError(
            f"a vocabulary of {limit} tokens is asked for, but bytes, single characters and "
            f"special tokens of this tokenizer are {len(kept)}: ask for more"
        )
    frequent = [int(id_) for id_ in np.argsort(-counts, kind="stable") if counts[id_] >= min_count]
    if not frequent:
        raise ValueError(
            f"no token occurs {min_count} times in the corpora, so nothing would be left of the "
            "vocabulary: lower the least count, or ingest more texts"
        )
    for id_ in frequent:
        wanted = {names[id_], *(token for token in needs(names[id_]) if token in tokens)} - kept
        if len(kept) + len(wanted) > limit:
            break
        kept |= wanted
    return sorted(tokens[token] for token in kept)


def trim(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]
) -> PreTrainedTokenizerFast:
    """Cut a decoder, in place, and its tokenizer down to some of its tokens.

    Args:
        decoder: Without language-model head.
        tokenizer: Its own.
        kept: What `select_tokens` gave; the place of an id here is its new id.

    Returns:
        The tokenizer of the cut decoder.

    Raises:
        ValueError: The decoder keeps a second table of a row per token, or the tokenizer holds ids
            in a form that is not known.
    """
    require_one_table(decoder)
    new_ids = {old: new for new, old in enumerate(kept)}
    smaller = _cut_tokenizer(tokenizer, kept, new_ids)
    embedding = decoder.get_input_embeddings()
    set_rows(decoder, embedding.weight.detach()[torch.tensor(kept)].clone())  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue, reportCallIssue, reportArgumentType]  # a matrix
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = new_ids.get(embedding.padding_idx)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for name, value in vars(decoder.config).items():
        if name.endswith("_token_id") and value is not None:
            setattr(decoder.config, name, _renumbered(value, new_ids))
    return smaller


def compare(
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    kept: Sequence[int],
    texts: Sequence[str],
) -> Coverage:
    """What the texts are made of with both tokenizers.

    Raises:
        ValueError: A text of kept tokens alone is made of others now, none of them new.
    """
    new_ids = np.full(max(before.get_vocab().values()) + 1, -1, dtype=np.int64)
    new_ids[np.asarray(kept)] = np.arange(len(kept))
    same = tokens_before = tokens_after = 0
    for batch in batches(texts):
        for text, old, new in zip(batch, ids_of(before, batch), ids_of(after, batch), strict=True):
            expected = new_ids[old]
            is_same = np.array_equal(expected, new)
            if not is_same and (expected >= 0).all() and (new < len(kept)).all():
                raise ValueError(
                    f"the changed tokenizer cuts {text[:60]!r} into other tokens although all of "
                    "its tokens were kept and none is new: the vocabulary of this tokenizer cannot "
                    "be changed, set backbone.vocabulary to keep"
                )
            same += is_same
            tokens_before += len(old)
            tokens_after += len(new)
    size = sum(len(text.encode()) for text in texts)
    return Coverage(len(texts), same, size, tokens_before, tokens_after)


def _special_ids(tokenizer: PreTrainedTokenizerFast, content: dict[str, Any]) -> set[int]:
    """Tokens with a meaning of their own, those that the tokenizer puts around texts included."""
    special = {added["id"] for added in content["added_tokens"] if added["special"]}
    special |= set(tokenizer.all_special_ids)
    return special | set(_processor_ids(content.get("post_processor")))


def _processor_ids(processor: dict[str, Any] | None) -> Iterator[int]:
    if processor is None:
        return
    for token in (processor.get("special_tokens") or {}).values():
        yield from token["ids"]
    for name in ("sep", "cls"):
        if name in processor:
            yield processor[name][1]
    for inner in processor.get("processors", []):
        yield from _processor_ids(inner)


def _cut_tokenizer(
    tokenizer: PreTrainedTokenizerFast, kept: Sequence[int], new_ids: dict[int, int]
) -> PreTrainedTokenizerFast:
    content = content_of(tokenizer)
    names = {id_: token for token, id_ in tokens_of(content["model"]).items()}
    content["added_tokens"] = [
        added | {"id": new_ids[added["id"]]}
        for added in content["added_tokens"]
        if added["id"] in new_ids
    ]
    # added tokens that the model lacks come after it, by their order
    content["model"] = cut_model(content["model"], [names[old] for old in kept if old in names])
    content["post_processor"] = _cut_processor(content.get("post_processor"), new_ids)
    if content.get("padding"):
        content["padding"]["pad_id"] = new_ids[content["padding"]["pad_id"]]
    around = [new_ids[id_] for id_ in tokenizer("").input_ids]
    return rewritten(tokenizer, content, tokens=len(kept), around=around)


def _cut_processor(
    processor: dict[str, Any] | None, new_ids: dict[int, int]
) -> dict[str, Any] | None:
    if processor is None:
        return None
    cut = dict(processor)
    if "special_tokens" in cut:
        cut["special_tokens"] = {
            name: token | {"ids": [new_ids[id_] for id_ in token["ids"]]}
            for name, token in cut["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if name in cut:
            cut[name] = [cut[name][0], new_ids[cut[name][1]]]
    if "processors" in cut:
        cut["processors"] = [_cut_processor(inner, new_ids) for inner in cut["processors"]]
    return cut


def _renumbered(value: int | list[int], new_ids: dict[int, int]) -> int | list[int] | None:
    if isinstance(value, list):
        return [new_ids[id_] for id_ in value if id_ in new_ids]
    return new_ids.get(value)
