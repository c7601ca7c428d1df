"""Batches: tokens, text hashes and grades of the rows that a step trains on.

A step has one sub-batch or several: each is scored for itself.

Shape letters: B = queries, N = documents (B positives, then hard negatives),
Q = remembered documents, D = embedding size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.encoder.encoder import Encoder
from model.losses.masks import BatchTexts, text_hashes
from model.encoder.tokenization import TokenizedText, tokenize
from model.training.data.prefetch import Prefetch
from model.training.data.composition import composition_of
from model.training.data.groups import group_rows
from model.training.data.memory_mapped import RowReader, table_digest
from model.training.data.order import SourceOrder
from model.training.settings import TrainingSource, TrainSettings
from model.training.devices.team import Team

LABELS_JOINED_BY = "|"
"""Stands between the labels of a row that has several, as ingest writes them."""
STEPS_AHEAD = 4
"""Steps that are prepared while the device trains."""


class PlainText(NamedTuple):
    """A text of a batch as a model with a tokenizer of its own needs it."""

    prompt: str
    """Prefix that the student sees."""
    text: str
    is_query: bool
    """Whether it is a query, or a text of the same kind as queries."""


@dataclass(frozen=True)
class Batch:
    """Rows that are scored together: all of a step, or a sub-batch of it."""

    row_ids: list[str]
    """Ids of the rows, for the message when the step fails."""
    items: list[TokenizedText]
    """Tokens of the B queries, then of the N documents."""
    texts: BatchTexts
    scores: np.ndarray | None
    """(B,) grades, for graded tasks only."""
    is_in_batch: bool
    """Whether documents of other rows are safe negatives."""
    teacher_scores: np.ndarray
    """(N,) float32; a teacher's score of each document for its owner's query, NaN if unknown."""
    plain_texts: list[PlainText]
    """What each item was before it was tokenised."""
    is_judged: bool = True
    """Whether the pairs say something by themselves; else only a teacher does."""
    memory_QD: Tensor | None = None
    """Embeddings of `texts.remembered`, without gradient."""

    @property
    def num_queries(self) -> int:
        """Queries in the batch."""
        return len(self.row_ids)


@dataclass(frozen=True)
class Step:
    """What one optimiser step needs."""

    source: str
    """Name of the one source, or of the way several were composed."""
    sub_batches: list[Batch]

    @cached_property
    def items(self) -> list[TokenizedText]:
        """Tokens of all texts, sub-batch after sub-batch."""
        return [item for sub_batch in self.sub_batches for item in sub_batch.items]

    @property
    def row_ids(self) -> list[str]:
        """Ids of all rows."""
        return [row for sub_batch in self.sub_batches for row in sub_batch.row_ids]

    @property
    def num_queries(self) -> int:
        """Queries of the step."""
        return sum(sub_batch.num_queries for sub_batch in self.sub_batches)


@dataclass(frozen=True)
class Ragged:
    """A list of strings per row, in one flat array."""

    texts: list[str]
    starts: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Ragged":
        """The lists of a column; null is an empty list."""
        lists = column.combine_chunks()
        starts = np.concatenate([[0], np.cumsum(_lengths(lists), dtype=np.int64)]).astype(np.int64)
        return cls(lists.flatten().to_pylist(), starts)

    def pick(self, rng: np.random.Generator) -> np.ndarray:
        """Place in `texts` of one random string of each row, (B,)."""
        start, end = self.starts[:-1], self.starts[1:]
        return start + rng.integers(0, end - start)

    def draw(self, row: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
        """Places in `texts` of at most `wanted` random strings of a row, each once."""
        places = np.arange(self.starts[row], self.starts[row + 1])
        return rng.permutation(places)[:wanted] if len(places) else places


class SourceReader:
    """The rows of one source as batches: read, drawn and tokenised when they are asked for."""

    def __init__(
        self, source: TrainingSource, tokenizer: PreTrainedTokenizerFast, max_length_tokens: int
    ) -> None:
        """Open the table; `tokenizer` must be used by no other thread."""
        self.source = source
        self._rows = RowReader(source.table)
        self._tokenizer = tokenizer
        self._max_length_tokens = max_length_tokens

    def batch(self, rows: np.ndarray, hard_negatives: int, rng: np.random.Generator) -> Batch:
        """Batch of these row numbers; which positive and which negatives is drawn from `rng`.

        A row with fewer than `hard_negatives` negatives gives all it has, each once.
        """
        table = self._rows.take(rows)
        queries: list[str] = table["query"].to_pylist()
        positives, negatives = Ragged.of(table["positives"]), Ragged.of(table["negatives"])
        wanted = 0 if self.source.is_graded else hard_negatives
        positive_B = positives.pick(rng)
        drawn = [negatives.draw(row, wanted, rng) for row in range(len(rows))]
        negative_X = np.concatenate(drawn)
        chosen = [positives.texts[place] for place in positive_B]
        against = [negatives.texts[place] for place in negative_X]
        query_B, known_P = text_hashes(queries), text_hashes(positives.texts)
        owners = np.repeat(np.arange(len(rows)), [len(places) for places in drawn])
        texts = queries + chosen + against
        prompts = [self.source.prompt] * len(queries)
        prompts += [self.source.document_prompt] * (len(texts) - len(queries))
        return Batch(
            row_ids=table["id"].to_pylist(),
            items=tokenize(self._tokenizer, texts, prompts, self._max_length_tokens),
            texts=BatchTexts(
                queries=query_B,
                documents=np.concatenate([known_P[positive_B], text_hashes(against)]),
                owners=np.concatenate([np.arange(len(rows)), owners]),
                known_queries=np.repeat(query_B, np.diff(positives.starts)),
                known_positives=known_P,
                classes=self._classes(table),
            ),
            scores=_scores(table) if self.source.is_graded else None,
            is_in_batch=self.source.is_in_batch,
            is_judged=self.source.is_judged,
            teacher_scores=np.concatenate(
                [
                    _teacher_scores(table, "positives")[positive_B],
                    _teacher_scores(table, "negatives")[negative_X],
                ]
            ),
            plain_texts=[
                PlainText(prompt, text, number < len(queries) or self.source.is_symmetric)
                for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
            ],
        )

    def _classes(self, table: pa.Table) -> np.ndarray | None:
        """Numbers (B, L) that are equal where source and label are.

        Rows without a label are one class; those with fewer labels than others repeat their first.
        """
        if self.source.is_in_batch or self.source.is_graded:
            return None
        is_labelled = "label" in table.column_names
        labels = table["label"].to_pylist() if is_labelled else [None] * table.num_rows
        names = [str(label).split(LABELS_JOINED_BY) for label in labels]
        most = max(map(len, names))
        full = chain.from_iterable(own + own[:1] * (most - len(own)) for own in names)
        return text_hashes(f"{self.source.name}: {name}" for name in full).reshape(-1, most)


class BatchPlan:
    """All steps of a training: number in, rows out, whatever was asked before."""

    def __init__(
        self,
        sources: list[TrainingSource],
        steps_of: np.ndarray,
        settings: TrainSettings,
        encoder: Encoder,
        folder: Path,
    ) -> None:
        """Find the order of the rows; `steps_of` is what `draw_steps` drew for each step.

        What does not fit the memory is kept in `folder` and found there by a resumed training.
        """
        self._settings = settings
        orders = [_source_order(source, settings, folder) for source in sources]
        self._composition = composition_of(orders, steps_of, settings)
        # truncation is a state of the tokenizer, and the encoder's own may be used meanwhile
        tokenizer = deepcopy(encoder.tokenizer)
        self.sources = [
            SourceReader(source, tokenizer, settings.max_length_tokens) for source in sources
        ]
        self._ahead: Prefetch[Step] | None = None

    @contextmanager
    def prepared_ahead(self) -> Iterator[None]:
        """Meanwhile a thread makes the steps that follow the one asked for; they are the same."""
        with Prefetch(self._make, self._settings.max_steps, STEPS_AHEAD) as self._ahead:
            try:
                yield
            finally:
                self._ahead = None

    def step(self, step: int) -> Step:
        """What step `step`, counted from 1, trains on."""
        return self._make(step) if self._ahead is None else self._ahead.get(step)

    def batch(self, step: int) -> Batch:
        """The batch of a step that has one sub-batch."""
        [batch] = self.step(step).sub_batches
        return batch

    def _make(self, step: int) -> Step:
        rng = np.random.default_rng([self._settings.seed, 2, step])
        draws = self._composition.draws(step)
        readers = [self.sources[draw.source] for draw in draws]
        batches = [
            reader.batch(draw.rows, self._settings.hard_negatives, rng)
            for reader, draw in zip(readers, draws, strict=True)
        ]
        if self._settings.batches == "source":
            return Step(readers[0].source.name, batches)
        is_mixed = self._settings.batches == "mixed"
        return Step(self._settings.batches, mixed(batches) if is_mixed else batches)


def mixed(batches: list[Batch]) -> list[Batch]:
    """Batches joined into one for each kind of loss.

    Rows of tasks with in-batch negatives are negatives of each other, whatever their source. Rows
    with classes or clusters never meet those: they have their own negatives, or each other's where
    the classes allow it. Graded rows are ordered among themselves.
    """
    kinds: dict[tuple[bool, bool, bool], list[Batch]] = {}
    for batch in batches:
        kind = (batch.scores is not None, batch.is_in_batch, batch.is_judged)
        kinds.setdefault(kind, []).append(batch)
    return [joined(kinds[kind]) for kind in sorted(kinds)]


def joined(batches: list[Batch]) -> Batch:
    """One batch of the rows of all, which must be scored alike."""
    texts = [batch.texts for batch in batches]
    rows = [batch.num_queries for batch in batches]
    first = np.cumsum([0, *rows[:-1]])
    owners = [text.owners + start for text, start in zip(texts, first, strict=True)]
    # hashes that hold the name of the source: no class of one is a class of another
    classes = [text.classes for text in texts if text.classes is not None]
    teacher_scores = [batch.teacher_scores for batch in batches]
    scores = [batch.scores for batch in batches if batch.scores is not None]
    return Batch(
        row_ids=[row for batch in batches for row in batch.row_ids],
        items=_queries_first([batch.items for batch in batches], rows),
        texts=BatchTexts(
            queries=np.concatenate([text.queries for text in texts]),
            documents=np.concatenate(_positives_first([text.documents for text in texts], rows)),
            owners=np.concatenate(_positives_first(owners, rows)),
            known_queries=np.concatenate([text.known_queries for text in texts]),
            known_positives=np.concatenate([text.known_positives for text in texts]),
            classes=_equally_wide(classes) if classes else None,
        ),
        scores=np.concatenate(scores) if scores else None,
        is_in_batch=batches[0].is_in_batch,
        is_judged=batches[0].is_judged,
        teacher_scores=np.concatenate(_positives_first(teacher_scores, rows)),
        plain_texts=_queries_first([batch.plain_texts for batch in batches], rows),
    )


def _equally_wide(classes: list[np.ndarray]) -> np.ndarray:
    """All rows of classes (B, L), the narrower ones widened by their first class."""
    most = max(own.shape[1] for own in classes)
    fill = [np.repeat(own[:, :1], most - own.shape[1], axis=1) for own in classes]
    return np.concatenate([np.hstack(pair) for pair in zip(classes, fill, strict=True)])


def _queries_first(columns: list[list[Any]], rows: list[int]) -> list[Any]:
    """The queries of all batches, then the positives, then the hard negatives."""
    queries = [column[:count] for column, count in zip(columns, rows, strict=True)]
    documents = [column[count:] for column, count in zip(columns, rows, strict=True)]
    return list(chain(*queries, *_positives_first(documents, rows)))


def _positives_first(columns: list[Any], rows: list[int]) -> list[Any]:
    """The positives of all batches, then their hard negatives."""
    positives = [column[:count] for column, count in zip(columns, rows, strict=True)]
    negatives = [column[count:] for column, count in zip(columns, rows, strict=True)]
    return positives + negatives


def prepare_orders(
    sources: list[TrainingSource], settings: TrainSettings, checkpoint_folder: Path, team: Team
) -> None:
    """Do now, once, all work of a training that grows with its rows.

    A training without it does the same at its start, when the device is waiting.
    """
    for source in sources:
        order = _source_order(source, settings, rows_folder(checkpoint_folder, team))
        if not order.is_kept:
            order.rows_of_visit(0)


def rows_folder(checkpoint_folder: Path, team: Team) -> Path:
    """Where a process keeps the order of the rows."""
    return checkpoint_folder / ("rows" if team.leads else f"rows-{team.rank}")


def _source_order(source: TrainingSource, settings: TrainSettings, folder: Path) -> SourceOrder:
    own = folder / f"{source.name}-{table_digest(source.table)}"
    groups = own / "groups.npy"
    if not groups.exists():
        group_rows(source.table["positives"], groups)
    group_R = np.load(groups, mmap_mode="r")
    return SourceOrder(source.name, group_R, settings.sub_batch_size, settings.seed, own)


def _scores(table: pa.Table) -> np.ndarray:
    return table["score"].to_numpy().astype(np.float32)


def _teacher_scores(table: pa.Table, side: str) -> np.ndarray:
    """A teacher's score of each text of the side, float32; NaN in the rows that have none.

    Raises:
        ValueError: A row has scores of more or fewer texts than it has.
    """
    name = f"{side.removesuffix('s')}_scores"
    lengths = _lengths(table[side].combine_chunks())
    scores = np.full(lengths.sum(), np.nan, dtype=np.float32)
    if name not in table.column_names:
        return scores
    lists = table[name].combine_chunks()
    has_scores = lists.is_valid().to_numpy(zero_copy_only=False)
    if (_lengths(lists)[has_scores] != lengths[has_scores]).any():
        raise ValueError(f"a row's {name} and {side} differ in number: mine or ingest it again")
    scores[np.repeat(has_scores, lengths)] = lists.flatten().to_numpy(zero_copy_only=False)
    return scores


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
