"""Batches: tokens, text hashes and grades of the rows that a step trains on.

Shape letters: B = queries, N = documents (B positives, then hard negatives), R = rows of a source.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.encoder import Encoder
from model.losses.masks import BatchTexts, text_hashes
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
    teacher_scores: np.ndarray
    """(N,) float32; a teacher's score of each document for its owner's query, NaN if unknown."""
    plain_texts: list[tuple[str, str]]
    """Prompt and text of each item, for a model with a tokenizer of its own."""

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
        """Place in `values` of one random number of each of these rows."""
        start, end = self.starts[rows], self.starts[rows + 1]
        return start + rng.integers(0, end - start)

    def draw(self, row: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
        """Places in `values` of `wanted` random numbers of this row, or of all it has."""
        start, end = self.starts[row], self.starts[row + 1]
        return start + rng.permutation(end - start)[:wanted] if end > start else np.arange(0)


def group_rows(table: pa.Table) -> np.ndarray:
    """Number of each row's first positive, (R,): rows of one number share that text."""
    _, positives, _ = _documents(table)
    return positives.values[positives.starts[:-1]]


class _Side:
    """Positives or negatives of all rows, one after the other, with a teacher's scores of them."""

    def __init__(self, table: pa.Table, name: str, starts: np.ndarray) -> None:
        self.texts: pa.Array = table[name].combine_chunks().flatten()
        self.scores = _teacher_scores(table, name, np.diff(starts))


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
        self._table = source.table.take(pa.array(rows)).combine_chunks()
        queries = self._table["query"].combine_chunks().dictionary_encode()
        documents, self._positives, self._negatives = _documents(self._table)
        self._sides = [
            _Side(self._table, "positives", self._positives.starts),
            _Side(self._table, "negatives", self._negatives.starts),
        ]
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
        drawn = [self._negatives.draw(row, wanted, rng) for row in local_B]
        owners = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in drawn])
        places = (positive_B, np.concatenate(drawn))
        ragged = (self._positives, self._negatives)
        document_N = np.concatenate([r.values[p] for r, p in zip(ragged, places, strict=True)])
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
                classes=self._classes(local_B),
            ),
            scores=self._scores(local_B) if self.source.is_graded else None,
            teacher_scores=np.concatenate(
                [side.scores[place] for side, place in zip(self._sides, places, strict=True)]
            ),
            plain_texts=self._plain_texts(local_B, places),
        )

    def _classes(self, local_B: np.ndarray) -> np.ndarray | None:
        """Numbers that are equal where source and label are."""
        is_labelled = not (self.source.is_in_batch or self.source.is_graded)
        if not is_labelled or "label" not in self._table.column_names:
            return None
        labels = self._table["label"].take(pa.array(local_B)).to_pylist()
        return text_hashes(f"{self.source.name}: {label}" for label in labels)

    def _plain_texts(
        self, local_B: np.ndarray, places: tuple[np.ndarray, np.ndarray]
    ) -> list[tuple[str, str]]:
        queries = self._table["query"].take(pa.array(local_B)).to_pylist()
        documents = [
            text
            for side, place in zip(self._sides, places, strict=True)
            for text in side.texts.take(pa.array(place)).to_pylist()
        ]
        return [(self.source.prompt, text) for text in queries] + [
            (self.source.document_prompt, text) for text in documents
        ]

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


def _teacher_scores(table: pa.Table, side: str, lengths: np.ndarray) -> np.ndarray:
    """A teacher's score of each text of the side, float32; NaN in the rows that have none.

    Raises:
        ValueError: A row has scores of more or fewer texts than it has.
    """
    name = f"{side.removesuffix('s')}_scores"
    scores = np.full(lengths.sum(), np.nan, dtype=np.float32)
    if name not in table.column_names:
        return scores
    lists = table[name].combine_chunks()
    has_scores = lists.is_valid().to_numpy(zero_copy_only=False)
    if (np.diff(_starts(lists))[has_scores] != lengths[has_scores]).any():
        raise ValueError(f"a row's {name} and {side} differ in number: mine or ingest it again")
    scores[np.repeat(has_scores, lengths)] = lists.flatten().to_numpy(zero_copy_only=False)
    return scores
