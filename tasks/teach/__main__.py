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
from typing import TYPE_CHECKING, Any

import numpy as np

from model.encoder.pace import Pace
from model.training.data.recorded_vectors import Shown, text_keys, write_vectors
from tasks.contract.stage import atomic_folder, run_stage, write_json
from tasks.machine.compute import Machine, use_compute
from tasks.outside import fingerprint, recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS, STATE
from tasks.params.teach import Teach, TeacherModel
from tasks.teach.agreement import agreement
from tasks.teach.cache import Keys, VectorCache
from tasks.teach.texts import shown_texts

if TYPE_CHECKING:
    from tasks.teach.teacher import Teacher

CACHE = STATE / "teach"
EXPORTED_ROWS = 50_000

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("teach", recorded("teach", teach))


def teach(params: Params) -> None:
    """Write artifacts/teach: a folder of vectors for each teacher, and metrics.json.

    Raises:
        StageError: A teacher cannot be used, or a source has no rows.
    """
    metrics: dict[str, Any] = {}
    with atomic_folder(ARTIFACTS / "teach") as folder:
        (folder / "vectors").mkdir()
        for name, model in params.teach.teachers.items():
            cache, asked = _ask(name, model, params.teach, use_compute(params.compute))
            keys = np.unique(asked)
            read = cache.reader()
            blocks = (read(keys[rows]) for rows in _slices(len(keys)))
            write_vectors(folder / "vectors" / name, keys, cache.size, blocks)
            shares = agreement(params.teach, read)
            metrics[name] = {"texts": len(keys), "embedding_size": cache.size}
            metrics[name] |= {"positive_is_nearer": shares} if shares else {}
            logger.info("%s: %s", name, metrics[name])
        # beside the vectors, since a clone does not get an empty folder
        write_json(folder / "vectors" / "teachers.json", sorted(metrics))
        write_json(folder / "metrics.json", {"teachers": metrics})


def _ask(
    name: str, model: TeacherModel, settings: Teach, machine: Machine
) -> tuple[VectorCache, Keys]:
    """The cache, with a vector of every text; and the keys of the texts."""
    from tasks.teach.teacher import Teacher  # ten seconds, of no use to those who name no teacher

    teacher = Teacher(name, model, machine.device)
    cache = VectorCache(CACHE / _identity(model, machine), teacher.size)
    shards = [text_keys(texts) for texts in shown_texts(settings)]
    missing = sum(len(cache.missing(keys)) for keys in shards)
    logger.info("%s: %d texts, %d of them new to it", *(name, sum(map(len, shards)), missing))
    pace, done = Pace(missing, shows_first=True), 0
    for texts in shown_texts(settings):
        for block in _blocks(texts, cache, settings.block_texts):
            _ask_about(block, teacher, cache)
            done += len(block)
            if pace.is_due(done):
                logger.info(
                    "%s: %d of %d texts, %.0f a second, %.0f s left",
                    *(name, done, missing, pace.per_s(done), pace.seconds_left),
                )
    return cache, np.concatenate(shards)


def _blocks(texts: list[Shown], cache: VectorCache, size: int) -> Iterator[list[Shown]]:
    """What the teacher has not seen, cut into blocks of texts of like length and form.

    The order is that of the texts, so a run that goes on makes the blocks that it would have made.
    """
    new = [texts[place] for place in cache.missing(text_keys(texts))]
    for is_query in (True, False):
        form = sorted((each for each in new if each[0] == is_query), key=lambda each: len(each[1]))
        for start in range(0, len(form), size):
            yield form[start : start + size]


def _ask_about(block: list[Shown], teacher: "Teacher", cache: VectorCache) -> None:
    vectors = teacher.embed([text for _, text in block], is_query=block[0][0])
    cache.add(text_keys(block), vectors)


def _identity(model: TeacherModel, machine: Machine) -> str:
    """Name of a teacher's cache: what it is and how it is asked."""
    source = model.source
    content = fingerprint(source, None) if Path(source).is_dir() else source
    asked = [content, model.model_dump(exclude={"source"}), machine.device.type]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + EXPORTED_ROWS) for start in range(0, rows, EXPORTED_ROWS))


if __name__ == "__main__":
    main()
