"""A text as words and as one 64-bit key: what duplicates and overlaps are found by."""

import re
from typing import NamedTuple

import xxhash

from tasks.contract.records import fold

_WORD = re.compile(r"[^\W_]+")


class Fingerprint(NamedTuple):
    """Words of a text in one case, and the key that equal texts share."""

    words: list[str]
    key: int
    """xxh3, 64 bits, of records.match_key; of the text itself where that key is empty."""


def fingerprint(text: str) -> Fingerprint:
    """Words and key of a normalised text."""
    words = _WORD.findall(fold(text))
    return Fingerprint(words, xxhash.xxh3_64_intdigest(("".join(words) or text).encode()))
