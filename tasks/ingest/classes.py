"""Pairs for labelled texts: a text of the same class as positive, of other classes as negatives.

Every choice is a hash of the seed, the row's id and a counter: the same on any machine, and
unchanged for a row when rows elsewhere come or go in a class it does not draw from.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import xxhash

MAX_DRAWS = 16
"""Random rows tried per negative; only a class that holds nearly all rows needs more."""


class ClassPairs:
    """Partners for the rows of one classification or clustering source."""

    def __init__(self, ids: list[str], labels: list[list[str]], seed: int) -> None:
        """Index the rows.

        Args:
            ids: Id of each row.
            labels: Labels of each row, sorted; one or several.
            seed: Changes every choice.
        """
        self._ids = ids
        self._labels = [frozenset(own) for own in labels]
        self._seed = seed
        self._of_set: defaultdict[frozenset[str], list[int]] = defaultdict(list)
        self._of_label: defaultdict[str, list[int]] = defaultdict(list)
        for row, own in enumerate(self._labels):
            self._of_set[own].append(row)
            for label in sorted(own):
                self._of_label[label].append(row)
        self._disjoint: dict[frozenset[str], list[int]] = {}
        self._sizes = Counter({label: len(rows) for label, rows in self._of_label.items()})

    def positive(self, row: int) -> int | None:
        """Another row with the same labels, else one that shares the row's rarest label.

        None when no other row shares a label.
        """
        own = self._labels[row]
        by_rarity = sorted(own, key=lambda label: (self._sizes[label], label))
        for members in (self._of_set[own], *(self._of_label[label] for label in by_rarity)):
            if len(members) > 1:
                place = self._draw(row, "positive", 0) % (len(members) - 1)
                # The last member stands in for the row itself, which must not be drawn.
                return members[place] if members[place] != row else members[-1]
        return None

    def negatives(self, row: int, count: int) -> list[int]:
        """At most `count` distinct rows that share no label with the row."""
        chosen: dict[int, None] = {}
        own = self._labels[row]
        for other in self._drawn_then_all(row, count):
            if own.isdisjoint(self._labels[other]):
                chosen[other] = None
                if len(chosen) == count:
                    break
        return list(chosen)

    def _drawn_then_all(self, row: int, count: int) -> Iterator[int]:
        """Random rows; then, when a class of nearly all rows left too few, every row of others."""
        for number in range(MAX_DRAWS * count):
            yield self._draw(row, "negative", number) % len(self._ids)
        others = self._others(self._labels[row])
        start = self._draw(row, "start", 0) % max(len(others), 1)
        yield from others[start:]
        yield from others[:start]

    def _others(self, own: frozenset[str]) -> list[int]:
        if own not in self._disjoint:
            self._disjoint[own] = sorted(
                row
                for labels, rows in self._of_set.items()
                if own.isdisjoint(labels)
                for row in rows
            )
        return self._disjoint[own]

    def _draw(self, row: int, purpose: str, number: int) -> int:
        return xxhash.xxh3_64_intdigest(
            f"{self._seed} {self._ids[row]} {purpose} {number}".encode()
        )
