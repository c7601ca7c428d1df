"""Distinct texts of a mining run and how its rows refer to them.

The corpus is the text of every document and every positive of the mined sources, each once; two
texts are one when their `match_key` is. Titles are left out: positives are bare passages, and a
negative that begins with a title could be told by its form. A document whose title and text
together equal a positive is ruled out all the same.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tasks.contract.records import match_key


@dataclass(frozen=True)
class RowNumbers:
    """Numbers per row, as pairs in row order: `row_P[i]` has `number_P[i]`."""

    row_P: np.ndarray
    number_P: np.ndarray

    def tensor(self) -> Tensor:
        """The pairs, (P, 2) int64."""
        return torch.from_numpy(np.stack([self.row_P, self.number_P], axis=1))


class MiningTexts:
    """Distinct queries and documents of a table of examples.

    Attributes:
        queries: Distinct pairs of prompt and query.
        query_of_row: Number in `queries` of each row.
        group_of_row: Rows whose queries read the same have one number.
        documents: Candidates first, then explicit negatives that are none.
        num_candidates: How many of `documents` may be mined.
        positives: Each row's positives.
        negatives: Each row's explicit negatives, without repeats and without any that equals the
            query or a positive of it.
        forbidden: What must not be mined for a row: its query, the positives of every row that
            asks the same, and its explicit negatives.
    """

    def __init__(self, examples: pa.Table, prompts: dict[str, str], corpus: pa.Table) -> None:
        """Number the texts.

        Args:
            examples: Rows with columns task, query, positives, negatives.
            prompts: Prefix of a query of each task.
            corpus: Documents with columns title and text.
        """
        rows = examples.select(["task", "query", "positives", "negatives"]).to_pylist()
        self.documents: list[str] = []
        self._numbers: dict[str, int] = {}
        self._titled: dict[str, set[int]] = defaultdict(set)
        for document in corpus.to_pylist():
            number = self._add(document["text"])
            if document["title"]:
                self._titled[_key(document["title"], document["text"])].add(number)
        self.positives = _row_numbers(
            [[self._add(text) for text in row["positives"]] for row in rows]
        )
        self.num_candidates = len(self.documents)
        keys = [_key(row["query"]) for row in rows]
        known = self._known_texts(rows, keys)
        explicit = [
            self._explicit(row["negatives"], known[key])
            for row, key in zip(rows, keys, strict=True)
        ]
        self.negatives = _row_numbers(explicit)
        self.forbidden = _row_numbers(
            [
                sorted(self._numbers_of(known[key]).union(own))
                for key, own in zip(keys, explicit, strict=True)
            ]
        )
        queries: dict[tuple[str, str], int] = {}
        pairs = [(prompts[row["task"]], row["query"]) for row in rows]
        self.query_of_row = np.array([queries.setdefault(pair, len(queries)) for pair in pairs])
        self.group_of_row = np.unique(keys, return_inverse=True)[1]
        self.queries = list(queries)

    def _add(self, text: str) -> int:
        number = self._numbers.setdefault(_key(text), len(self.documents))
        if number == len(self.documents):
            self.documents.append(text)
        return number

    @staticmethod
    def _known_texts(rows: list[dict[str, Any]], keys: list[str]) -> dict[str, set[str]]:
        """Per query: the keys of itself and of every positive of every row that asks it."""
        known: dict[str, set[str]] = defaultdict(set)
        for row, key in zip(rows, keys, strict=True):
            known[key].add(key)
            known[key].update(_key(text) for text in row["positives"])
        return known

    def _numbers_of(self, keys: set[str]) -> set[int]:
        titled = set[int]().union(*(self._titled.get(key, ()) for key in keys))
        return titled | {self._numbers[key] for key in keys if key in self._numbers}

    def _explicit(self, texts: list[str], known: set[str]) -> list[int]:
        return list(dict.fromkeys(self._add(text) for text in texts if _key(text) not in known))


def _row_numbers(lists: Sequence[Sequence[int]]) -> RowNumbers:
    lengths = [len(numbers) for numbers in lists]
    return RowNumbers(
        row_P=np.repeat(np.arange(len(lists)), lengths),
        number_P=np.array([number for numbers in lists for number in numbers], dtype=np.int64),
    )


def _key(*parts: str) -> str:
    """`match_key` of the parts together; a text without letters and digits is its own key."""
    text = "\n".join(parts)
    return match_key(text) or text
