"""From admitted rows to the tables of the contract: examples, development, documents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.contract.records import CLASS_TASKS, DOCUMENT_SCHEMA, EXAMPLE_SCHEMA, text_id
from tasks.contract.stage import StageError
from tasks.ingest.admission import Admitted
from tasks.ingest.classes import ClassPairs
from tasks.ingest.fingerprint import fingerprint
from tasks.ingest.in_domain import InDomain
from tasks.ingest.passages import passages_of
from tasks.ingest.quarantine import Place, Quarantine
from tasks.ingest.split import holds_key, is_development, query_keys, sample
from tasks.ingest.spool import Spool
from tasks.params.base import PASSAGES
from tasks.params.data import Ingest


@dataclass(frozen=True)
class Split:
    """The sampled rows of a source and which of them are for development."""

    admitted: Admitted
    table: pa.Table
    development: NDArray[np.bool_]


def split_sources(sources: list[Admitted], development_fraction: float) -> list[Split]:
    """Sample every source to its max_rows and mark its development rows."""
    splits = []
    for admitted in sources:
        table = sample(admitted.table, admitted.source.max_rows)
        if admitted.source.left_out:
            marked = np.ones(len(table), dtype=np.bool_)
        else:
            marked = is_development(table, admitted.source.task, development_fraction)
        splits.append(Split(admitted, table, marked))
    return splits


class Assembly:
    """Writes the final rows of one source after another, and counts them."""

    def __init__(
        self, limits: Ingest, splits: list[Split], in_domain: InDomain, folder: Path
    ) -> None:
        """Spool to `folder`; the development queries of all sources must be known by now."""
        self._limits = limits
        self._in_domain = in_domain
        self._examples = Spool(folder / "examples.arrow", EXAMPLE_SCHEMA)
        self._development = Spool(folder / "development.arrow", EXAMPLE_SCHEMA)
        self._documents = Spool(folder / "documents.arrow", DOCUMENT_SCHEMA)
        self._development_keys = np.unique(np.concatenate([_held_out(split) for split in splits]))
        self._document_keys: set[int] = set()
        for split in splits:
            if split.admitted.source.task == "documents":
                self._document_keys.update(query_keys(split.table).tolist())

    def add(self, split: Split, quarantine: Quarantine) -> dict[str, Any]:
        """Write the rows of a source; rows that give development queries away are refused.

        Returns:
            Rows read, kept for training (or as documents), in the development split, unsampled
            (beyond max_rows), documents and pairs of passages written, and in_domain: training rows
            that stand in the train split of an evaluation task, by task.

        Raises:
            StageError: A labelled source has one class only, or no two rows of one class.
        """
        admitted = split.admitted
        counts: dict[str, Any] = {
            "read": admitted.rows_read,
            "kept": len(split.table),
            "development": int(split.development.sum()),
            "unsampled": len(admitted.table) - len(split.table),
        }
        if admitted.source.task == "documents":
            counts["documents"] = self._add_documents(split)
            counts["passages"] = self._add_passages(split)
            return counts
        leaking = holds_key(split.table, self._development_keys) & ~split.development
        for file, row, query in _cells(split.table.filter(leaking), "file", "row", "query"):
            place = Place(admitted.name, file, row)
            detail = "its query or positive is a query of the development split or is left out"
            quarantine.add(place, "development_overlap", detail, query)
        training = split.table.filter(~split.development & ~leaking)
        held_out = split.table.filter(split.development)
        if admitted.source.task in CLASS_TASKS:
            training = self._training_pairs(training, admitted, quarantine)
            held_out, _ = self._with_class_pairs(held_out)
        self._examples.append_table(_examples(training, admitted))
        self._development.append_table(_examples(held_out, admitted))
        counts["kept"] = len(training)
        counts["in_domain"] = self._in_domain.count(training)
        counts["documents"] = self._add_positives(split) if admitted.source.also_documents else 0
        return counts

    def finish(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Examples, development and documents of all sources, memory-mapped."""
        return self._examples.finish(), self._development.finish(), self._documents.finish()

    def _add_documents(self, split: Split) -> int:
        name = split.admitted.name
        self._documents.append_table(
            split.table.select(["id", "lang", "title", "text"])
            .add_column(1, "source", _constant(name, len(split.table)))
            .cast(DOCUMENT_SCHEMA)
        )
        return len(split.table)

    def _add_passages(self, split: Split) -> int:
        """Add the pairs of passages that are wanted of documents."""
        source, name = split.admitted.source, split.admitted.name
        if source.passages is None:
            return 0
        documents = _cells(split.table, "text", "lang")
        held_out = set(self._development_keys.tolist())
        # the few that hold a text of the development split are not replaced by others
        pairs = [
            pair
            for pair in passages_of(name, documents, source.passages)
            if held_out.isdisjoint(fingerprint(text).key for text in (pair.query, pair.positive))
        ]
        for pair in pairs:
            given = {"id": pair.id, "source": name, "lang": pair.lang, "query": pair.query}
            empty = {"positive_scores": None, "negatives": [], "negative_scores": None}
            row = {"task": PASSAGES, "positives": [pair.positive], **empty}
            self._examples.append({**given, **row, "label": None, "score": None})
        return len(pairs)

    def _add_positives(self, split: Split) -> int:
        """Add the positives of both sides that are no documents yet."""
        name, added = split.admitted.name, 0
        for lang, positives, keys in _cells(split.table, "lang", "positives", "keys"):
            for text, key in zip(positives, keys[1:], strict=True):
                if key in self._document_keys:
                    continue
                self._document_keys.add(key)
                row = {"id": text_id(name, "", text), "source": name, "lang": lang}
                self._documents.append({**row, "title": "", "text": text})
                added += 1
        return added

    def _training_pairs(
        self, table: pa.Table, admitted: Admitted, quarantine: Quarantine
    ) -> pa.Table:
        """The rows that have a partner; the others are refused."""
        paired, has_partner = self._with_class_pairs(table)
        alone = table.filter(~has_partner)
        for file, row, query, labels in _cells(alone, "file", "row", "query", "labels"):
            detail = f"no other row has the label {'|'.join(labels)}"
            place = Place(admitted.name, file, row)
            quarantine.add(place, "label_with_one_member", detail, query)
        if not len(paired):
            raise StageError(
                f"source {admitted.name}: no two rows share a label, so no row has a partner of "
                "its class; check that fields.label maps a class and not an id or a text, and "
                "label_separator"
            )
        if not any(paired["negatives"].to_pylist()):
            raise StageError(
                f"source {admitted.name}: all rows share a label, so there is nothing to tell "
                "apart; check fields.label and label_separator"
            )
        return paired

    def _with_class_pairs(self, table: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
        """The rows that have a partner among these, with it, and which those are."""
        queries = table["query"].to_pylist()
        pairs = ClassPairs(table["id"].to_pylist(), table["labels"].to_pylist(), self._limits.seed)
        positive = [pairs.positive(row) for row in range(len(table))]
        kept = [row for row, other in enumerate(positive) if other is not None]
        chosen = [[queries[other]] for other in positive if other is not None]
        wanted = self._limits.class_negatives
        negatives = [[queries[other] for other in pairs.negatives(row, wanted)] for row in kept]
        paired = (
            table.take(pa.array(kept, pa.int64()))
            .drop_columns(["positives", "negatives"])
            .append_column("positives", pa.array(chosen, pa.list_(pa.string())))
            .append_column("negatives", pa.array(negatives, pa.list_(pa.string())))
        )
        return paired, np.array([other is not None for other in positive], dtype=np.bool_)


def _held_out(split: Split) -> NDArray[np.uint64]:
    """Keys of the texts that no training row may hold: of a source left out, positives as well."""
    if not split.admitted.source.left_out:
        return query_keys(split.table)[split.development]
    return split.table["keys"].combine_chunks().flatten().to_numpy()


def _examples(table: pa.Table, admitted: Admitted) -> pa.Table:
    rows = len(table)
    labels = ["|".join(own) or None for own in table["labels"].to_pylist()]
    columns = {
        "id": table["id"],
        "task": _constant(admitted.source.task, rows),
        "source": _constant(admitted.name, rows),
        "lang": table["lang"],
        "query": table["query"],
        "positives": table["positives"],
        "positive_scores": pa.nulls(rows, pa.list_(pa.float32())),
        "negatives": table["negatives"],
        "negative_scores": pa.nulls(rows, pa.list_(pa.float32())),
        "label": pa.array(labels, pa.string()),
        "score": table["score"],
    }
    return pa.table(columns).cast(EXAMPLE_SCHEMA)


def _constant(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)


def _cells(table: pa.Table, *columns: str) -> list[tuple]:
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))
