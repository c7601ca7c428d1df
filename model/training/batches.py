"""Batches: tokens, text hashes and grades of the rows that a step trains on.

Shape letters: B = queries, N = documents (B positives, then hard negatives), R = rows of a source,
Q = remembered documents, D = embedding size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from model.encoder import Encoder
from model.losses.masks import BatchTexts
from model.tokenization import TokenizedText
from model.training.order import SourceOrder
from model.training.settings import TrainingSource, TrainSettings
from model.training.texts import TokenPool, tokenize_pool


@dataclass(frozen=True)
class Batch:
    """What one optimiser step needs."""

    row_ids: list[str]
    """Ids of the rows, for the message when the step fails."""
    items: list[TokenizedText]
    """Tokens of the B queries, then of the N documents."""
    texts: BatchTexts
    scores: np.ndarray | None
    """(B,) grades, for graded tasks only."""
    memory_QD: Tensor | None = None
    """Embeddings of `texts.remembered`, without gradient."""

    @property
    def num_queries(self) -> int:
        """Queries in the batch."""
        return len(self.row_ids)


@dataclass(frozen=True)
class Ragged:
    """Lists of numbers, one per row, in one flat array."""

    values: np.ndarray
    starts: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Numbers of this row."""
        return self.values[self.starts[row] : self.starts[row + 1]]

    def pick(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One random number of each of these rows."""
        start, end = self.starts[rows], self.starts[rows + 1]
        return self.values[start + rng.integers(0, end - start)]


def group_rows(table: pa.Table) -> np.ndarray:
    """Number of each row's first positive, (R,): rows of one number share that text."""
    _, positives, _ = _documents(table)
    return positives.values[positives.starts[:-1]]


class TokenizedSource:
    """The rows of one source that a training visits, tokenised once."""

    def __init__(
        self,
        source: TrainingSource,
        rows: np.ndarray,
        encoder: Encoder,
        max_length: int,
        folder: Path,
    ) -> None:
        """Tokenise the given sorted row numbers of `source` into files below `folder`."""
        self.source = source
        self._row_numbers = rows
        self._table = source.table.take(pa.array(rows))
        queries = self._table["query"].combine_chunks().dictionary_encode()
        documents, self._positives, self._negatives = _documents(self._table)
        self._query_of_row = queries.indices.to_numpy(zero_copy_only=False)
        self._queries = self._pool(encoder, queries.dictionary, "queries", max_length, folder)
        self._documents = self._pool(encoder, documents, "documents", max_length, folder)

    def _pool(
        self, encoder: Encoder, texts: pa.Array, side: str, max_length: int, folder: Path
    ) -> TokenPool:
        prompt = self.source.prompt if side == "queries" else self.source.document_prompt
        return tokenize_pool(
            encoder,
            texts,
            prompt=prompt,
            max_length_tokens=max_length,
            file=folder / f"{self.source.name}.{side}.int32",
        )

    def batch(self, rows: np.ndarray, hard_negatives: int, rng: np.random.Generator) -> Batch:
        """Batch of these row numbers; which positive and which negatives is drawn from `rng`.

        A row with fewer than `hard_negatives` negatives gives all it has, each once.
        """
        local_B = np.searchsorted(self._row_numbers, rows)
        wanted = 0 if self.source.is_graded else hard_negatives
        positive_B = self._positives.pick(local_B, rng)
        negatives = [_draw(self._negatives.of(row), wanted, rng) for row in local_B]
        document_N = np.concatenate([positive_B, *negatives])
        owners = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in negatives])
        query_B = self._query_of_row[local_B]
        known = [self._positives.of(row) for row in local_B]
        query_hash_B = self._queries.hashes[query_B]
        return Batch(
            row_ids=self._table["id"].take(pa.array(local_B)).to_pylist(),
            items=self._queries.take(query_B) + self._documents.take(document_N),
            texts=BatchTexts(
                queries=query_hash_B,
                documents=self._documents.hashes[document_N],
                owners=np.concatenate([np.arange(len(rows)), owners]),
                known_queries=np.repeat(query_hash_B, [len(texts) for texts in known]),
                known_positives=self._documents.hashes[np.concatenate(known)],
            ),
            scores=self._scores(local_B) if self.source.is_graded else None,
        )

    def _scores(self, local_B: np.ndarray) -> np.ndarray:
        return self._table["score"].take(pa.array(local_B)).to_numpy().astype(np.float32)


class BatchPlan:
    """All batches of a training: step in, batch out, whatever was asked before."""

    def __init__(
        self,
        sources: list[TrainingSource],
        steps_of: np.ndarray,
        settings: TrainSettings,
        encoder: Encoder,
        folder: Path,
    ) -> None:
        """Tokenise what the steps will visit; `steps_of` is the source of each step."""
        self._steps_of = steps_of
        self._settings = settings
        self._orders = [
            SourceOrder(source.name, group_rows(source.table), settings.batch_size, settings.seed)
            for source in sources
        ]
        self.sources = [
            TokenizedSource(
                source,
                order.visited_rows(int((steps_of == number).sum())),
                encoder,
                settings.max_length_tokens,
                folder,
            )
            for number, (source, order) in enumerate(zip(sources, self._orders, strict=True))
        ]

    def source_of(self, step: int) -> TrainingSource:
        """Source of step `step`, counted from 1."""
        return self.sources[self._steps_of[step - 1]].source

    def batch(self, step: int) -> Batch:
        """Batch of step `step`, counted from 1."""
        number = int(self._steps_of[step - 1])
        visit = int((self._steps_of[: step - 1] == number).sum())
        rng = np.random.default_rng([self._settings.seed, 2, step])
        return self.sources[number].batch(
            self._orders[number].rows_of_visit(visit), self._settings.hard_negatives, rng
        )


def _documents(table: pa.Table) -> tuple[pa.Array, Ragged, Ragged]:
    """Distinct documents, and each row's positives and negatives as numbers into them."""
    lists = [table[name].combine_chunks() for name in ("positives", "negatives")]
    flat = [column.flatten() for column in lists]
    encoded = pa.concat_arrays(flat).dictionary_encode()
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    parts = np.split(numbers, [len(flat[0])])
    ragged = [Ragged(part, _starts(column)) for part, column in zip(parts, lists, strict=True)]
    return encoded.dictionary, ragged[0], ragged[1]


def _starts(lists: pa.ListArray) -> np.ndarray:
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _draw(texts: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(texts)[:wanted] if len(texts) else texts[:0]
