"""Asking teachers about texts that they have not seen, whatever kind they are and whoever asks.

Their answers are kept by content in a cache that all stages share.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from model.encoder.pace import Pace
from model.training.data.recorded_vectors import Shown, text_keys
from tasks.contract.stage import StageError
from tasks.machine.compute import use_compute
from tasks.outside import fingerprint
from tasks.params.paths import STATE
from tasks.params.teach import AskedTeacher, Teach, TeacherAverage, TeacherEndpoint
from tasks.params.training import Compute
from tasks.teach.average import averaged
from tasks.teach.cache import Keys, Reader, VectorCache, Vectors

CACHE = STATE / "teach"
NO_DEVICE = torch.device("cpu")

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """What a teacher said of the texts that are shown."""

    size: int
    read: Reader
    metrics: dict[str, Any]
    """What is to be told of it alone."""


class Texts(NamedTuple):
    """What teachers are asked about."""

    keys: Keys
    """Of all texts, each once and rising; there is one at least."""
    shards: Callable[[], Iterable[list[Shown]]]
    """Gives the texts, in the same order whenever it is called."""


def texts_of(shards: Callable[[], Iterable[list[Shown]]]) -> Texts:
    """The texts that `shards` gives whenever it is called, with their keys."""
    return Texts(np.unique(np.concatenate([text_keys(texts) for texts in shards()])), shards)


def ask(names: Iterable[str], texts: Texts, settings: Teach, compute: Compute) -> dict[str, Record]:
    """What these teachers say of all texts; those of which an average is made are asked for it.

    Args:
        names: Teachers of `settings`, of any kind.
        texts: What they are asked about.
        settings: Section teach.
        compute: Section compute, for models on this machine.

    Raises:
        StageError: A teacher cannot be used, or `texts.shards` says that texts are missing.
        OSError: The disk is full; what was kept before stays.
    """
    wanted = list(names)
    parts = {part for name in wanted for part in settings.parts(name)}
    asked = {name: model for name, model in settings.asked.items() if name in parts}
    is_local = not all(isinstance(each, TeacherEndpoint) for each in asked.values())
    device = use_compute(compute).device if is_local else NO_DEVICE
    records: dict[str, Record] = {}
    for name, model in asked.items():
        cache = VectorCache(CACHE / _identity(model, device))
        _fill(cache, name, texts, settings, device)
        assert cache.size is not None  # noqa: S101 - there are texts, and it has answered
        told = {"tokens": cache.tokens(texts.keys)} if isinstance(model, TeacherEndpoint) else {}
        records[name] = Record(cache.size, cache.reader(), told)
    for name, average in settings.averages.items():
        if name in wanted:
            records[name] = _average(average, records)
    return {name: records[name] for name in wanted}


def _average(average: TeacherAverage, records: dict[str, Record]) -> Record:
    weights = average.average

    def read(keys: Keys) -> Vectors:
        parts = [(weight, records[name].read(keys)) for name, weight in weights.items()]
        return averaged(parts).astype(np.float16)

    return Record(sum(records[name].size for name in weights), read, {})


def _fill(
    cache: VectorCache, name: str, texts: Texts, settings: Teach, device: torch.device
) -> None:
    """Ask a teacher about what is not in its cache, so that every text has its vector."""
    model = settings.asked[name]
    new = texts.keys[cache.missing(texts.keys)]
    logger.info("%s: %d texts, %d of them new to it", name, len(texts.keys), len(new))
    if not len(new):
        return
    pace, done = Pace(len(new), shows_first=True), 0

    def keep(block: list[Shown], vectors: Vectors, tokens: int) -> None:
        nonlocal done
        try:
            cache.add(text_keys(block), vectors, tokens)
        except ValueError as error:
            raise StageError(f"teach.teachers.{name} {error}") from error
        done += len(block)
        if pace.is_due(done):
            logger.info(
                "%s: %d of %d texts, %.0f a second, %.0f s left",
                *(name, done, len(new), pace.per_s(done), pace.seconds_left),
            )

    if isinstance(model, TeacherEndpoint):
        from tasks.teach.endpoint import EndpointTeacher  # the SDK, of no use to others

        teacher = EndpointTeacher(name, model, cache)
        teacher.answer(_blocks(texts.shards(), new, model.batch_texts), keep)
    else:
        from tasks.teach.teacher import Teacher  # ten seconds, of no use where all is known

        Teacher(f"teach.teachers.{name}", model, device).answer(
            _blocks(texts.shards(), new, settings.block_texts), keep
        )


def _blocks(shards: Iterable[list[Shown]], new: Keys, size: int) -> Iterator[list[Shown]]:
    """The texts of these rising keys, each once, in blocks of texts of like length and form.

    The order is that of the texts, so a run that goes on makes the blocks that it would have made.
    """
    waits = np.ones(len(new), dtype=bool)
    for texts in shards:
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
