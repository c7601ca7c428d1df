"""What a smaller or a larger tokenizer is made of, for each family of tokenizers.

A tokenizer is the content of tokenizer.json. A token is a string of its vocabulary.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Needs = Callable[[str], Iterable[str]]
"""The tokens without which one token can no longer be made."""

Pair = tuple[str, str]
"""Two tokens, made one."""

BYTES = 256
SPACE = "▁"
JOINED = 1e-6
"""What a new piece of a Unigram scores above those that it joins, for each piece saved: less than
what divides two cuts of a text. So the best cut, or one as good, is taken, its pieces joined."""
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
    require_family(model)
    return _nothing if model["type"] == "Unigram" else _merged(merges_of(model))


def require_family(model: dict[str, Any]) -> None:
    """Check that the vocabulary of such a tokenizer can be changed.

    Raises:
        ValueError: It cannot, for its family or its options.
    """
    family = model["type"]
    if family not in {"BPE", "Unigram"}:
        raise ValueError(
            f"the tokenizer is of the family {family}, which falls back to one token for all that "
            "it does not know: set backbone.vocabulary to keep; BPE and Unigram can be trimmed "
            "and extended"
        )
    affixes = [name for name in AFFIXES if model.get(name)]
    if family == "BPE" and affixes:
        raise ValueError(
            f"the tokenizer is BPE with {', '.join(affixes)}, for which no way to change the "
            "vocabulary is known: set backbone.vocabulary to keep"
        )


def merges_of(model: dict[str, Any]) -> list[Pair]:
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


def joins_of(content: dict[str, Any]) -> Callable[[str], bool]:
    """Which tokens may be added to this tokenizer.

    Those that cut texts into words before bytes know what a word is. For all others a token is
    letters behind one space or none, never a byte, a mark for the unknown, or two words.
    """
    cutter = content.get("pre_tokenizer") or {}
    kinds = {part.get("type") for part in [cutter, *cutter.get("pretokenizers", [])]}
    return bool if "ByteLevel" in kinds else _is_word


def grown_model(content: dict[str, Any], pairs: Sequence[Pair]) -> dict[str, Any]:
    """The model of tokenizer.json with one token more for each pair, in their order.

    Every id stays; those of the new tokens follow the largest. So tokens that stood beside the
    model stand in it now, where no text reaches them: the tokenizer takes them out of it before.

    Args:
        content: Of tokenizer.json.
        pairs: Of tokens of the vocabulary or of earlier pairs; none makes a known token.

    Raises:
        ValueError: The tokenizer is a Unigram with characters in its pieces that are none alone:
            what an unknown one costs would change, and texts of old tokens with it.
    """
    model, added = content["model"], content["added_tokens"]
    grown = dict(model)
    beside = {token["content"]: token["id"] for token in added}
    tokens = {**tokens_of(model), **beside}
    new = ["".join(pair) for pair in pairs]
    if model["type"] == "BPE":
        first = max(tokens.values()) + 1
        grown["vocab"] = tokens | {token: first + place for place, token in enumerate(new)}
        grown["merges"] = [list(pair) for pair in [*merges_of(model), *pairs]]
        return grown
    scores = dict(model["vocab"])
    least = min(scores.values())
    letters = set("".join(token for token in scores if token not in beside and not _is_byte(token)))
    if strange := sorted(letters - scores.keys()):
        raise ValueError(
            f"pieces of the tokenizer hold {strange[0]!r}, which is no piece: its vocabulary "
            "cannot be extended, set backbone.vocabulary to keep"
        )
    behind = sorted(beside.keys() - scores.keys(), key=lambda token: beside[token])
    grown["vocab"] = [*model["vocab"], *([token, least] for token in behind)]
    for left, right in pairs:
        scores[left + right] = scores[left] + scores[right] + JOINED
        grown["vocab"].append([left + right, scores[left + right]])
    return grown


def pieces_of(pairs: Sequence[Pair], ids: Mapping[str, int]) -> list[list[int]]:
    """The old tokens that each new one joins, for ids of the old ones."""
    pieces: dict[str, list[int]] = {}
    for left, right in pairs:
        pieces[left + right] = [
            id_ for part in (left, right) for id_ in pieces.get(part) or [ids[part]]
        ]
    return list(pieces.values())


def _is_word(token: str) -> bool:
    letters = token.removeprefix(SPACE)
    return letters != "" and all(unicodedata.category(letter)[0] in "LM" for letter in letters)


def _is_byte(token: str) -> bool:
    return len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">")


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
