"""Retrieval tasks of the benchmark: which documents are judged, and which are missing.

The layout is that of the hub: configs `corpus`, `queries` and `qrels` (or `default`), in tasks of
several languages with a prefix such as `ru-`.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.contract.stage import StageError
from tasks.ingest.locations import Location
from tasks.ingest.readers import Fault, Values, read_rows
from tasks.params.data import Overlap

_CONFIG = re.compile(r"(?:(?P<prefix>.+)-)?(?P<role>corpus|queries|qrels|default)")

logger = logging.getLogger(__name__)


class Judgements:
    """The scored files of one task; says which of their rows hold texts to be compared."""

    def __init__(self, task: str, files: list[Location], overlap: Overlap) -> None:
        """Read the judgements of `files`, if there is a corpus among them.

        Raises:
            StageError: Only a part of the texts is to be compared, but the task has no corpus.
        """
        self._task = task
        self._overlap = overlap
        self._configs = {file.name: _config(file.name) for file in files}
        self._judged: defaultdict[str, set[str]] = defaultdict(set)
        self._documents: defaultdict[str, set[str]] = defaultdict(set)
        self._is_retrieval = any(role == "corpus" for _, role in self._configs.values())
        if overlap != "everything" and not self._is_retrieval:
            raise StageError(
                f"ingest.overlap.{task} is {overlap}, but the task has no corpus of documents: "
                "only a retrieval task can be compared in part, so remove the entry"
            )
        for file in files:
            prefix, role = self._configs[file.name]
            if self._is_retrieval and role in {"qrels", "default"}:
                self._judged[prefix].update(_judged_documents(file))

    def is_compared(self, file: str, row: int, values: Values) -> bool:
        """Whether training must not hold the texts of a row.

        Raises:
            StageError: A document or query has no id or no text.
        """
        prefix, role = self._configs.get(file, ("", ""))
        if not self._is_retrieval or role not in {"corpus", "queries"}:
            return True
        _require(file, row, values)
        if role == "queries":
            return True
        own = str(_first(values, "_id", "id"))
        self._documents[prefix].add(own)
        judged = self._overlap == "judged" and own in self._judged[prefix]
        return judged or self._overlap == "everything"

    def warn(self) -> None:
        """Say how many judged documents no corpus holds, once all rows were asked for."""
        missing = sum(len(own - self._documents[prefix]) for prefix, own in self._judged.items())
        if missing:
            judged = sum(map(len, self._judged.values()))
            message = "evaluation task %s: %d of %d documents in its qrels are not in its corpus"
            logger.warning(message, self._task, missing, judged)


def _config(file: str) -> tuple[str, str]:
    """Prefix and role of the config that a file belongs to, the second part of its name."""
    name = PurePosixPath(file).parts[1].partition(".")[0]
    match = _CONFIG.fullmatch(name)
    return (match["prefix"] or "", match["role"]) if match else ("", "")


def _judged_documents(file: Location) -> Iterator[str]:
    for _, values in read_rows(file, None):
        document = None if isinstance(values, Fault) else _first(values, "corpus-id", "corpus_id")
        if document is not None:
            yield str(document)


def _require(file: str, row: int, values: Values) -> None:
    for column in ("_id", "id", "text"):
        if column in values and values[column] is None:
            raise StageError(
                f"data.benchmark: row {row} of {file} has null as {column}, with which no score "
                "can be computed: remove the row, or fetch the task again"
            )


def _first(values: Values, *names: str) -> object:
    return next((values[name] for name in names if values.get(name) is not None), None)
