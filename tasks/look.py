"""Whether the data of a run can be read as params.yaml declares them: `python -m tasks.look`.

The first rows of the files of every source and evaluation task, read by the readers of the stages
themselves, and every task made as stage evaluate makes it, hours later. One JSON line per finding
for `python -m flows.check`, like those of tasks/probe.py; no stage runs this.
"""

import itertools
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.contract.stage import StageError
from tasks.ingest.candidates import RowParser, RowRefusedError
from tasks.ingest.locations import Location, benchmark_files, source_files
from tasks.ingest.readers import Fault, read_rows
from tasks.params.data import Source
from tasks.params.load import Params, load_params
from tasks.probe import Level, print_finding

FIRST_ROWS = 100
MOST_FILES = 20
"""Files of one source that are opened, the first and the last among them."""
FREE_KEYS = {"jsonl", "json"}
"""Layouts whose rows need not all have the same columns."""

Finding = tuple[Level, str]


def main() -> None:
    """Print every finding."""
    params = load_params()
    for name, look in LOOKS.items():
        for level, text in look(params):
            print_finding(name, level, text)


def corpora(params: Params) -> Iterator[Finding]:
    """The first rows of every source, and of every table of the evaluation tasks."""
    found = [
        finding
        for name, source in params.ingest.sources.items()
        for finding in _source_faults(name, source, params)
    ]
    found += _benchmark_faults(params)
    yield from found
    if all(level != "error" for level, _ in found):
        yield (
            "ok",
            f"the first rows of {len(params.ingest.sources)} sources in {params.data.corpus} and "
            f"of {len(params.evaluate.tasks)} tasks in {params.data.benchmark} can be read",
        )


def evaluation(params: Params) -> Iterator[Finding]:
    """Every evaluation task as stage evaluate makes it: known to mteb, with the splits it needs."""
    if "://" in params.data.benchmark:
        yield "ok", "the splits of tasks in a bucket are not looked at"
        return
    with tempfile.TemporaryDirectory(prefix="samovar-datasets-") as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        os.environ["HF_HUB_OFFLINE"] = "1"
        from tasks.evaluate.benchmark import local_task  # takes seconds, and reads these two

        logging.getLogger("mteb").setLevel(logging.WARNING)
        faults = 0
        for task, official in params.evaluate.tasks.items():
            try:
                local_task(Path(params.data.benchmark) / task, official, params.evaluate.seed)
            except StageError as error:
                faults += 1
                yield "error", str(error)
    if not faults:
        yield "ok", f"mteb can make {len(params.evaluate.tasks)} tasks"


def _source_faults(name: str, source: Source, params: Params) -> list[Finding]:
    """What is wrong with a source, up to its first file with an error."""
    try:
        files = source_files(name, source, params.data.corpus, params.store.endpoint_url)
    except StageError as error:
        return [("error", str(error))]
    parser = RowParser(source, params.ingest)
    found: list[Finding] = []
    for file in _some(files):
        try:
            found += list(_file_faults(name, file, parser))
        except (StageError, OSError) as error:
            found.append(("error", f"source {name}: {error}"))
        if any(level == "error" for level, _ in found):
            break
    return found


def _file_faults(name: str, file: Location, parser: RowParser) -> Iterator[Finding]:
    rows = list(itertools.islice(read_rows(file, None), FIRST_ROWS))
    reasons = Counter(reason for row, values in rows if (reason := _refusal(row, values, parser)))
    refused = sum(reasons.values())
    columns = {column: True for _, values in rows if isinstance(values, dict) for column in values}
    missing = [column for column in parser.columns if columns and column not in columns]
    what = f"the first {len(rows)} rows of {file.path}"
    if missing:
        may_come = file.layout in FREE_KEYS and refused < len(rows)
        yield (
            "warning" if may_come else "error",
            f"source {name}: {what} have no columns {missing}; found {list(columns)}: correct "
            "`fields` of its source in params.yaml",
        )
    elif refused > len(rows) / 2:
        why = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(2))
        yield (
            "error" if refused == len(rows) else "warning",
            f"source {name}: ingest would refuse {refused} of {what}: {why}",
        )


def _refusal(row: int, values: dict[str, object] | Fault, parser: RowParser) -> str | None:
    """Why ingest would refuse a row."""
    if isinstance(values, Fault):
        return f"{values.reason}: {values.detail}"
    try:
        parser.parse(row, {column: values.get(column) for column in parser.columns})
    except RowRefusedError as error:
        return f"{error.reason}: {error.detail}"
    return None


def _benchmark_faults(params: Params) -> Iterator[Finding]:
    try:
        tasks = benchmark_files(params.data.benchmark, params.store.endpoint_url)
    except StageError as error:
        yield "error", str(error)
        return
    missing = [task for task in params.evaluate.tasks if task not in tasks]
    if missing:
        yield "error", f"{params.data.benchmark} has no folder {', '.join(missing)}"
    for files in tasks.values():
        for file in _some(files):
            try:
                next(read_rows(file, None))
            except (StageError, OSError) as error:
                yield "error", f"data.benchmark: {error}"


def _some(files: list[Location]) -> list[Location]:
    """At most `MOST_FILES` of them, evenly spread."""
    if len(files) <= MOST_FILES:
        return files
    step = (len(files) - 1) / (MOST_FILES - 1)
    return [files[round(number * step)] for number in range(MOST_FILES)]


LOOKS: dict[str, Callable[[Params], Iterator[Finding]]] = {
    "corpora": corpora,
    "evaluation": evaluation,
}

if __name__ == "__main__":
    main()
