"""Stage teach: what finished embedding models say of the texts of the corpora, once for all runs.

A training imitates a teacher by its vectors (distillation) or lets it judge negatives (a guide).
The vectors do not change while the student learns, so they are computed here and kept by content: a
next run asks about new texts alone.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from model.encoder.pace import Pace
from model.training.data.recorded_vectors import Shown, text_keys, write_vectors
from tasks.contract.stage import StageError, atomic_folder, run_stage, write_json
from tasks.machine.compute import use_compute
from tasks.outside import fingerprint, recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS, STATE
from tasks.params.teach import AskedTeacher, Teach, TeacherAverage, TeacherEndpoint
from tasks.teach.agreement import agreement
from tasks.teach.average import averaged
from tasks.teach.cache import Keys, Reader, VectorCache, Vectors
from tasks.teach.texts import shown_texts

CACHE = STATE / "teach"
EXPORTED_ROWS = 50_000
NO_DEVICE = torch.device("cpu")

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """What a teacher said of the texts that are shown."""

    size: int
    read: Reader
    metrics: dict[str, Any]
    """What is to be told of it alone."""


def main() -> None:
    """Run the stage."""
    run_stage("teach", recorded("teach", teach))


def teach(params: Params) -> None:
    """Write artifacts/teach: a folder of vectors for each teacher, and metrics.json.

    Raises:
        StageError: A teacher cannot be used, a source has no rows, or there are no texts.
    """
    settings = params.teach
    keys, records = _all_records(params) if settings.teachers else (np.zeros(0, np.uint64), {})
    metrics: dict[str, Any] = {}
    with atomic_folder(ARTIFACTS / "teach") as folder:
        (folder / "vectors").mkdir()
        for name, record in records.items():
            blocks = (record.read(keys[rows]) for rows in _slices(len(keys)))
            write_vectors(folder / "vectors" / name, keys, record.size, blocks)
            shares = agreement(name, settings, record.read)
            metrics[name] = {"texts": len(keys), "embedding_size": record.size} | record.metrics
            metrics[name] |= {"positive_is_nearer": shares} if shares else {}
            logger.info("%s: %s", name, metrics[name])
        # beside the vectors, since a clone does not get an empty folder
        write_json(folder / "vectors" / "teachers.json", sorted(metrics))
        write_json(folder / "metrics.json", {"teachers": metrics})


def _all_records(params: Params) -> tuple[Keys, dict[str, Record]]:
    """Keys of the texts, rising, and what every teacher says of them."""
    settings = params.teach
    asked = settings.asked
    is_local = not all(isinstance(each, TeacherEndpoint) for each in asked.values())
    device = use_compute(params.compute).device if is_local else NO_DEVICE
    keys = np.unique(np.concatenate([text_keys(texts) for texts in shown_texts(settings)]))
    if not len(keys):
        raise StageError(
            "teach.teachers are shown nothing: name teach.sources, or set teach.documents to true"
        )
    records: dict[str, Record] = {}
    for name, model in asked.items():
        cache = VectorCache(CACHE / _identity(model, device))
        _ask(name, model, settings, cache, keys, device)
        assert cache.size is not None  # noqa: S101 - there are texts, and it has answered
        told = {"tokens": cache.tokens(keys)} if isinstance(model, TeacherEndpoint) else {}
        records[name] = Record(cache.size, cache.reader(), told)
    for name, average in settings.averages.items():
        records[name] = _average(average, records)
    return keys, records


def _average(average: TeacherAverage, records: dict[str, Record]) -> Record:
    weights = average.average

    def read(keys: Keys) -> Vectors:
        parts = [(weight, records[name].read(keys)) for name, weight in weights.items()]
        return averaged(parts).astype(np.float16)

    return Record(sum(records[name].size for name in weights), read, {})


def _ask(
    name: str,
    model: AskedTeacher,
    settings: Teach,
    cache: VectorCache,
    keys: Keys,
    device: torch.device,
) -> None:
    """Fill the cache, so that every text has its vector."""
    new = keys[cache.missing(keys)]
    logger.info("%s: %d texts, %d of them new to it", name, len(keys), len(new))
    if not len(new):
        return
    pace, done = Pace(len(new), shows_first=True), 0

    def keep(texts: list[Shown], vectors: Vectors, tokens: int) -> None:
        nonlocal done
        try:
            cache.add(text_keys(texts), vectors, tokens)
        except ValueError as error:
            raise StageError(f"teach.teachers.{name} {error}") from error
        done += len(texts)
        if pace.is_due(done):
            logger.info(
                "%s: %d of %d texts, %.0f a second, %.0f s left",
                *(name, done, len(new), pace.per_s(done), pace.seconds_left),
            )

    if isinstance(model, TeacherEndpoint):
        from tasks.teach.endpoint import EndpointTeacher  # the SDK, of no use to others

        teacher = EndpointTeacher(name, model, cache)
        teacher.answer(_blocks(settings, new, model.batch_texts), keep)
    else:
        from tasks.teach.teacher import Teacher  # ten seconds, of no use where all is known

        Teacher(f"teach.teachers.{name}", model, device).answer(
            _blocks(settings, new, settings.block_texts), keep
        )


def _blocks(settings: Teach, new: Keys, size: int) -> Iterator[list[Shown]]:
    """The texts of these rising keys, each once, in blocks of texts of like length and form.

    The order is that of the texts, so a run that goes on makes the blocks that it would have made.
    """
    waits = np.ones(len(new), dtype=bool)
    for texts in shown_texts(settings):
        keys = text_keys(texts)
        place = np.minimum(np.searchsorted(new, keys), len(new) - 1)
        is_due = (new[place] == keys) & waits[place]
        waits[place[is_due]] = False
        due = [texts[each] for each in np.flatnonzero(is_due)]
        for is_query in (True, False):
            form = sorted((each for each in due if each[0] == is_query), key=lambda e: len(e[1]))
            for start in range(0, len(form), size):
                yield form[start : start + size]


def _identity(model: AskedTeacher, device: torch.device) -> str:
    """Name of a teacher's cache: what it is and how it is asked."""
    if isinstance(model, TeacherEndpoint):
        asked: list[Any] = ["endpoint", model.asks_for]
    else:
        source = model.source
        content = fingerprint(source, None) if Path(source).is_dir() else source
        asked = [content, model.model_dump(exclude={"source"}), device.type]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + EXPORTED_ROWS) for start in range(0, rows, EXPORTED_ROWS))


if __name__ == "__main__":
    main()
