"""Every text of every evaluation task: what training must not have seen.

Scores come from the splits other than train; the train split of a classification task only fits
its probe. Training on it is common (FRIDA, Qwen3-Embedding), but makes the task in-domain and its
score no longer comparable with zero-shot ones, so such rows stay and are counted.
"""

import logging
import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from tasks.contract.records import EVALUATION_SCHEMA, normalise_text
from tasks.contract.stage import StageError
from tasks.ingest.judgements import Judgements
from tasks.ingest.locations import Location, benchmark_files, is_train_split
from tasks.ingest.readers import Fault, read_rows
from tasks.params.data import Overlap

_NO_TEXT = re.compile(
    r"(.*[_-])?(ids?|labels?|lang|languages?|scores?|split|url)(_text)?", re.IGNORECASE
)

logger = logging.getLogger(__name__)


class Benchmark(NamedTuple):
    """The texts of the evaluation tasks, tables (task, text) in the order they are read."""

    evaluation: pa.Table
    """Distinct texts of the splits that are scored."""
    train: pa.Table
    """Distinct texts of the train splits of tasks that have others."""


def read_benchmark(
    benchmark: str, endpoint_url: str | None, overlap: dict[str, Overlap]
) -> Benchmark:
    """Read all tasks below `benchmark`; `overlap` tells which texts of a task count.

    Texts are the strings of all configs, those in lists and structs included. Only columns with
    the name of an identifier or a label are left out: a query may repeat as often as a class does,
    and the name of a class taken for a text costs a training row at most where it is the whole of
    one.

    Raises:
        StageError: A file cannot be read, a task has no text that is scored, or `overlap` names
            no task.
    """
    tasks = benchmark_files(benchmark, endpoint_url)
    unknown = sorted(set(overlap) - set(tasks))
    if unknown:
        raise StageError(
            f"ingest.overlap names {unknown}, but data.benchmark {benchmark} holds {sorted(tasks)}:"
            " correct the names"
        )
    evaluation: list[tuple[str, str]] = []
    train: list[tuple[str, str]] = []
    for task, files in tasks.items():
        scored = [file for file in files if not is_train_split(file.name)] or files
        judgements = Judgements(task, scored, overlap.get(task, "everything"))
        found = _texts(scored, judgements)
        judgements.warn()
        if not found:
            raise StageError(
                f"data.benchmark {benchmark}: task {task} has no column of texts; training rows "
                "cannot be compared with it"
            )
        evaluation += [(task, text) for text in found]
        rest = [file for file in files if file not in scored]
        train += [(task, text) for text in _texts(rest, Judgements(task, rest, "everything"))]
    message = "%d texts of evaluation tasks, %d of their train splits"
    logger.info(message, len(evaluation), len(train))
    return Benchmark(_table(evaluation), _table(train))


def _texts(files: list[Location], judgements: Judgements) -> list[str]:
    return list(dict.fromkeys(text for file in files for text in _file_texts(file, judgements)))


def _table(rows: list[tuple[str, str]]) -> pa.Table:
    columns = {"task": [task for task, _ in rows], "text": [text for _, text in rows]}
    return pa.table(columns, schema=EVALUATION_SCHEMA)


def _file_texts(location: Location, judgements: Judgements) -> list[str]:
    columns: dict[str, dict[str, None]] = {}
    for row, values in read_rows(location, None):
        if isinstance(values, Fault):
            raise StageError(
                f"data.benchmark: row {row} of {location.name}: {values.detail}; a task folder "
                "holds tables only: fetch the file again, or remove it"
            )
        if not judgements.is_compared(location.name, row, values):
            continue
        for column, value in values.items():
            columns.setdefault(column, {}).update(dict.fromkeys(_strings(column, value)))
    return [text for column in columns.values() for text in column]


def _strings(name: str, value: object) -> Iterator[str]:
    """The texts in a value of the column or key `name`."""
    if _NO_TEXT.fullmatch(name):
        return
    if isinstance(value, str | bytes):
        # bytes are an image or a sound, unless they are a text
        text = normalise_text(value if isinstance(value, str) else _text_of(value))
        if text:
            yield text
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(str(key), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(name, item)


def _text_of(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return ""
