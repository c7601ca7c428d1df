"""Pairs of neighbouring passages out of documents: texts that a teacher may be imitated on.

Nobody judged them, so no loss of their own stands on them. A sentence takes the place of a query
and what follows it that of a document, since that is how long such texts are.

Source: LEAF, Vujanic and Rueckstiess 2025, arXiv:2509.12539: plain texts are enough to distil.
"""

import heapq
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.contract.records import text_id

SENTENCE_CHARACTERS = (20, 250)
"""Shortest and longest sentence that stands for a query."""
PASSAGE_CHARACTERS = 400
"""A passage ends with the sentence that reaches this length, and is cut at twice as many."""
_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])\s+|\n+")


class Passages(NamedTuple):
    """A sentence and what follows it in the same document."""

    id: str
    """Hash of source and both texts."""
    query: str
    positive: str
    lang: str


def passages_of(source: str, documents: Iterable[tuple[str, str]], wanted: int) -> list[Passages]:
    """The pairs with the smallest ids of all documents, rising; fewer if there are no more.

    Args:
        source: Name of the source.
        documents: Text and language of each.
        wanted: Most pairs.
    """
    kept: dict[str, Passages] = {}
    for text, lang in documents:
        for query, positive in _pairs(text):
            pair = Passages(text_id(source, query, positive), query, positive, lang)
            kept[pair.id] = pair
        if len(kept) > 2 * wanted:
            kept = {pair.id: pair for pair in heapq.nsmallest(wanted, kept.values())}
    return sorted(kept.values())[:wanted]


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """All pairs of a text; none shares a sentence with another."""
    sentences = [part.strip() for part in _SENTENCE_ENDS.split(text)]
    shortest, longest = SENTENCE_CHARACTERS
    place = 0
    while place < len(sentences) - 1:
        query, place = sentences[place], place + 1
        if not shortest <= len(query) <= longest:
            continue
        following: list[str] = []
        while place < len(sentences) and sum(map(len, following)) < PASSAGE_CHARACTERS:
            following += [sentences[place]] if sentences[place] else []
            place += 1
        passage = " ".join(following)[: 2 * PASSAGE_CHARACTERS]
        if len(passage) >= shortest and passage != query:
            yield query, passage
