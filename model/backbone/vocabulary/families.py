"""What a token needs to be made again by a smaller tokenizer, for each family of tokenizers.

A tokenizer is the content of tokenizer.json. A token is a string of its vocabulary.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

Needs = Callable[[str], Iterable[str]]
"""The tokens without which one token can no longer be made."""

BYTES = 256
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def tokens_of(model: dict[str, Any]) -> dict[str, int]:
    """Token to id, of the model of tokenizer.json."""
    if model["type"] == "Unigram":
        return {piece: id_ for id_, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def needs_of(model: dict[str, Any]) -> Needs:
    """What each token needs so that texts of kept tokens keep them.

    Raises:
        ValueError: Tokenizers of this family, or with these options, cannot be cut that way.
    """
    family = model["type"]
    if family == "Unigram":
        return _nothing
    if family != "BPE":
        raise ValueError(
            f"the tokenizer is of the family {family}, which falls back to one token for all that "
            "it does not know: set backbone.vocabulary to keep; BPE and Unigram can be trimmed"
        )
    affixes = [name for name in AFFIXES if model.get(name)]
    if affixes:
        raise ValueError(
            f"the tokenizer is BPE with {', '.join(affixes)}, which trimming does not know: set "
            "backbone.vocabulary to keep"
        )
    return _merged(merges_of(model))


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE, from the first that is applied; files hold them in two forms."""
    return [
        (merge.split(" ")[0], merge.split(" ")[1]) if isinstance(merge, str) else tuple(merge)
        for merge in model["merges"]
    ]


def always_kept(model: dict[str, Any]) -> set[str]:
    """Tokens that decide how texts of other tokens are cut: bytes, single characters, the unknown.

    Of a Unigram also its least likely piece, from whose score that of an unknown character follows.
    """
    tokens = tokens_of(model)
    kept = {token for token in tokens if len(token) == 1}
    kept |= {name for byte in range(BYTES) if (name := f"<0x{byte:02X}>") in tokens}
    if model["type"] == "Unigram":
        kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
        if model.get("unk_id") is not None:
            kept.add(model["vocab"][model["unk_id"]][0])
    elif model.get("unk_token") is not None:
        kept.add(model["unk_token"])
    return kept


def cut_model(model: dict[str, Any], kept: list[str]) -> dict[str, Any]:
    """The model of tokenizer.json with these tokens alone, their ids in the order given."""
    cut = dict(model)
    if model["type"] == "Unigram":
        scores = dict(model["vocab"])
        cut["vocab"] = [[token, scores[token]] for token in kept]
        if model.get("unk_id") is not None:
            cut["unk_id"] = kept.index(model["vocab"][model["unk_id"]][0])
        return cut
    cut["vocab"] = {token: id_ for id_, token in enumerate(kept)}
    cut["merges"] = [
        [left, right]
        for left, right in merges_of(model)
        if left in cut["vocab"] and right in cut["vocab"] and left + right in cut["vocab"]
    ]
    return cut


def _nothing(token: str) -> Iterable[str]:
    """The best cut of a text stays the best one, whichever other pieces are gone."""
    del token
    return ()


def _merged(merges: list[tuple[str, str]]) -> Needs:
    """Every token on the way from the characters of a token to it.

    Merges within a token happen in the order in which they happen when it is a text of its own,
    since none crosses its ends; so one way is all there is.
    """
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(merges):
        ranks[merge] = rank  # of a merge that stands twice the later counts, as tokenizers reads it

    def needs(token: str) -> Iterable[str]:
        parts, way = list(token), []
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            place = min(range(len(pairs)), key=lambda at: (ranks.get(pairs[at], len(ranks)), at))
            if pairs[place] not in ranks:
                return way  # only an added token, or a whole word by ignore_merges
            parts[place : place + 2] = ["".join(pairs[place])]
            way.append(parts[place])
        return way

    return needs
