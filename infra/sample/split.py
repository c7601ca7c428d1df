"""Splits the entities into training and test, and finds mentions of names in texts.

An entity is a test entity by a hash of its name, unless other facts mention it often (planets,
large countries). A training fact whose value mentions a test entity is removed, so that no
training text can name it; `Matcher` lets the writer of the files check every text once more.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace

from infra.sample.tables import Row, Table

TEST_PERCENT = 17
"""Share of the entities that the hash sends to the test side, percent."""
MAX_MENTIONS = 2
"""An entity mentioned by more facts of others than this stays in training."""

_SHORTEST_SURNAME = 4
_TOKEN = re.compile(r"\w+(?:[-’]\w+)*|[«»#+]")


def tokens(text: str) -> list[str]:
    """Lower-case words, with the quotation marks that mark titles."""
    return _TOKEN.findall(text.lower())


def surface_forms(row: Row) -> set[tuple[str, ...]]:
    """Token sequences under which a text may mention the entity."""
    if row.mode == "kind":
        quoted = "_kind" in row.values
        return {tuple(tokens(f"«{row.name}»" if quoted else row.name))}
    forms = {tuple(tokens(form)) for form in row.noun.forms}
    if row.table == "writers":
        forms |= {form[-1:] for form in forms if len(form[-1]) >= _SHORTEST_SURNAME}
    return forms


class Matcher:
    """Finds which of the given entities a text mentions, in any case form."""

    def __init__(self, rows: list[Row]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for row in rows:
            for form in sorted(surface_forms(row)):
                self._by_first.setdefault(form[0], []).append((form, row.key))

    def find(self, text: str) -> set[str]:
        """Keys of the entities that the text mentions."""
        words = tokens(text)
        found: set[str] = set()
        for index, word in enumerate(words):
            for form, key in self._by_first.get(word, ()):
                if tuple(words[index : index + len(form)]) == form:
                    found.add(key)
        return found


@dataclass(frozen=True)
class Split:
    """Tables restricted to training entities and to test entities, with the test matcher."""

    train: tuple[Table, ...]
    test: tuple[Table, ...]
    test_matcher: Matcher


def _hashed_to_test(key: str) -> bool:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return int(digest[:8], 16) % 100 < TEST_PERCENT


def _mention_counts(rows: list[Row]) -> Counter[str]:
    matcher = Matcher(rows)
    counts: Counter[str] = Counter()
    for row in rows:
        others = " | ".join(value for key, value in sorted(row.values.items()) if key != "name")
        counts.update(matcher.find(others) - {row.key})
    return counts


def _clean(row: Row, matcher: Matcher) -> Row:
    values = {
        key: value
        for key, value in row.values.items()
        if key.startswith("_") or not matcher.find(value)
    }
    return replace(row, values=values)


def split_tables(tables: tuple[Table, ...]) -> Split:
    """Divide every table; the same name in two tables always lands on one side.

    Args:
        tables: All tables.

    Returns:
        The two sides; training rows whose own name mentions a test entity are in neither.
    """
    rows = [row for table in tables for row in table.rows]
    counts = _mention_counts(rows)
    test_keys = {
        row.key for row in rows if _hashed_to_test(row.key) and counts[row.key] <= MAX_MENTIONS
    }
    matcher = Matcher([row for row in rows if row.key in test_keys])
    train: list[Table] = []
    test: list[Table] = []
    for table in tables:
        ours = [row for row in table.rows if row.key not in test_keys]
        cleaned = tuple(_clean(row, matcher) for row in ours if not _names_test(row, matcher))
        train.append(replace(table, rows=cleaned))
        test.append(replace(table, rows=tuple(r for r in table.rows if r.key in test_keys)))
    return Split(tuple(train), tuple(test), matcher)


def _names_test(row: Row, matcher: Matcher) -> bool:
    return any(matcher.find(form) for form in row.noun.forms)
