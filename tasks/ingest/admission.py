"""From the rows of a source to the candidates that may stay; every refused row is quarantined."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.contract.records import CLASS_TASKS, text_id
from tasks.contract.stage import StageError
from tasks.ingest.candidates import Candidate, RowParser, RowRefusedError
from tasks.ingest.duplicates import Duplicates
from tasks.ingest.fingerprint import Fingerprint, fingerprint
from tasks.ingest.language import LanguageDetector
from tasks.ingest.locations import Location
from tasks.ingest.overlap import Match, OverlapIndex
from tasks.ingest.quarantine import Place, Quarantine
from tasks.ingest.readers import BATCH_ROWS, Fault, Row, read_rows
from tasks.ingest.spool import Spool
from tasks.params.data import Ingest, Source

LOG_EVERY_S = 5.0

ADMITTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("lang", pa.string()),
        ("query", pa.string()),
        ("positives", pa.list_(pa.string())),
        ("negatives", pa.list_(pa.string())),
        ("title", pa.string()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("score", pa.float32()),
        ("keys", pa.list_(pa.uint64())),
    ]
)
"""One row per candidate; `keys` are those of the query and the positives, or of the document."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admitted:
    """What passed of one source."""

    name: str
    source: Source
    rows_read: int
    table: pa.Table
    """ADMITTED_SCHEMA, in the order of the files."""


class Admission:
    """The checks a row must pass, with what they remember of all sources so far."""

    def __init__(self, limits: Ingest, overlap: OverlapIndex, quarantine: Quarantine) -> None:
        """Remember nothing yet; `limits` is the section ingest."""
        self._limits = limits
        self._overlap = overlap
        self._quarantine = quarantine
        self._duplicates = Duplicates()
        self._overlapping: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def admit(self, name: str, source: Source, files: list[Location], spool: Path) -> Admitted:
        """Read all files of a source.

        Args:
            name: Its name in params.yaml.
            source: Its declaration.
            files: Its files, in the order their rows are to stand.
            spool: File to keep the candidates in.

        Raises:
            StageError: A file cannot be read, no row of the source may stay, or evaluation texts
                removed more than max_overlap_share of them.
        """
        started = time.monotonic()
        parser = RowParser(source, self._limits)
        rows_read = 0
        with Spool(spool, ADMITTED_SCHEMA) as admitted:
            for location in files:
                self._duplicates.begin_file(location.name)
                place = Place(name, location.name, 0)
                rows = read_rows(location, parser.columns)
                for batch in _batches(_logged(rows, name, started)):
                    rows_read += len(batch)
                    for row in self._check_batch(batch, place, parser):
                        admitted.append(row)
            table = admitted.finish()
        seconds = time.monotonic() - started
        counts = dict(sorted(self._quarantine.counts[name].items()))
        message = "source %s: %d rows read, %d admitted, refused %s, %.1f s, %.0f rows/s"
        logger.info(message, name, rows_read, len(table), counts, seconds, rows_read / seconds)
        self._warn_of_long_texts(name, rows_read)
        self._check_overlap(name, rows_read)
        if not len(table):
            refused = self._quarantine.told(name)
            raise StageError(f"source {name}: none of its {rows_read} rows can be used: {refused}")
        return Admitted(name, source, rows_read, table)

    def _warn_of_long_texts(self, name: str, rows_read: int) -> None:
        too_long = self._quarantine.counts[name]["too_long"]
        if too_long:
            message = (
                "source %s: %d of %d rows hold a text longer than ingest.max_characters %d and are "
                "refused whole, not cut: raise it (the model reads the first max_length_tokens "
                "alone), or split the texts"
            )
            logger.warning(message, name, too_long, rows_read, self._limits.max_characters)

    def _check_overlap(self, name: str, rows_read: int) -> None:
        tasks = self._overlapping[name]
        lost = sum(tasks.values())
        if lost > self._limits.max_overlap_share * rows_read:
            raise StageError(
                f"source {name}: {lost} of its {rows_read} rows hold evaluation texts (by task: "
                f"{dict(tasks.most_common())}), more than ingest.max_overlap_share "
                f"{self._limits.max_overlap_share}: if a task is made of the same documents, set "
                f"ingest.overlap to {{{tasks.most_common(1)[0][0]}: judged}} or to queries, which "
                "leaves its other documents in the training; else train on another source"
            )

    @cached_property
    def _detector(self) -> LanguageDetector:
        return LanguageDetector(self._limits.languages)

    def _check_batch(
        self, batch: list[Row], place: Place, parser: RowParser
    ) -> Iterator[dict[str, Any]]:
        candidates = [
            candidate
            for number, values in batch
            if (candidate := self._parse(values, place._replace(row=number), parser)) is not None
        ]
        prints = [fingerprint(text) for candidate in candidates for text in candidate.texts]
        overlaps = iter(zip(prints, self._overlap.find(prints), strict=True))
        for candidate in candidates:
            found = list(islice(overlaps, len(candidate.texts)))
            own = [print_ for print_, _ in found]
            try:
                lang = self._lang(candidate, parser.source)
                self._refuse_overlap((answer for _, answer in found), place.source)
                self._refuse_duplicate(candidate, parser.source.task, place.source, own)
            except RowRefusedError as error:
                self._refuse(place._replace(row=candidate.row), error, candidate.texts)
                continue
            yield _admitted_row(candidate, place, parser.source, lang, own)

    def _parse(
        self, values: dict[str, object] | Fault, place: Place, parser: RowParser
    ) -> Candidate | None:
        if isinstance(values, Fault):
            self._quarantine.add(place, *values)
            return None
        try:
            return parser.parse(place.row, values)
        except RowRefusedError as error:
            self._refuse(place, error, values.values())
            return None

    def _lang(self, candidate: Candidate, source: Source) -> str:
        if source.lang is not None:
            return source.lang
        # The positive of a translation pair is in another language, else it helps to tell.
        own = candidate.texts[:1] if source.task == "bitext" else candidate.texts
        lang = self._detector.detect("\n".join(own))
        if lang not in self._limits.languages:
            raise RowRefusedError("language", f"{lang}, kept are {self._limits.languages}")
        return lang

    def _refuse_duplicate(
        self, candidate: Candidate, task: str, source: str, prints: list[Fingerprint]
    ) -> None:
        if task == "documents":
            self._duplicates.check_document(candidate.row, prints[-1].key)
        elif task in CLASS_TASKS:
            self._duplicates.check_labelled(candidate, source, prints[0].key)
        else:
            pair = prints[: 1 + len(candidate.positives)]
            self._duplicates.check_pair(candidate, task, pair)

    def _refuse_overlap(self, answers: Iterable[Match | None], source: str) -> None:
        for match in answers:
            if match is not None:
                self._overlapping[source][match.task] += 1
                raise RowRefusedError("evaluation_overlap", str(match))

    def _refuse(self, place: Place, error: RowRefusedError, texts: Iterable[object]) -> None:
        content = " | ".join(str(text) for text in texts if text is not None)
        self._quarantine.add(place, error.reason, error.detail, content)


def _admitted_row(
    candidate: Candidate, place: Place, source: Source, lang: str, prints: list[Fingerprint]
) -> dict[str, Any]:
    content = [candidate.title, candidate.text]
    keyed = prints[-1:]
    if source.task != "documents":
        labels = "|".join(candidate.labels)
        content = [candidate.query, *candidate.positives, *candidate.negatives, labels]
        keyed = prints[: 1 + len(candidate.positives)]
    return {
        "file": place.file,
        "row": candidate.row,
        "id": text_id(place.source, *content),
        "lang": lang,
        "query": candidate.query,
        "positives": candidate.positives,
        "negatives": candidate.negatives,
        "title": candidate.title,
        "text": candidate.text,
        "labels": candidate.labels,
        "score": candidate.score,
        "keys": [print_.key for print_ in keyed],
    }


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _logged(rows: Iterator[Row], name: str, started: float) -> Iterator[Row]:
    """The rows, with a line in the log every few seconds."""
    next_log = started + LOG_EVERY_S
    for count, row in enumerate(rows):
        now = time.monotonic()
        if now >= next_log:
            logger.info("source %s: %d rows, %.0f rows/s", name, count, count / (now - started))
            next_log = now + LOG_EVERY_S
        yield row
