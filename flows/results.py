"""What a run leaves, read for those who show it: ladder, decision, published version, times.

Where it lies stands in tasks/params/paths.py, which the stages that write it use as well.
"""

import json
from pathlib import Path
from typing import Any

from tasks.params.load import Params
from tasks.params.paths import DATA_FLOW, DECISION, LADDER, OUTSIDE, PUBLISHED, TIMINGS


def read_ladder(path: Path = LADDER) -> list[dict[str, Any]]:
    """The rungs `{"rung", "mean", "tasks"}` the report stage wrote; none when it has not run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def read_decision(path: Path = DECISION) -> dict[str, Any] | None:
    """What the gate decided, and by which scores; None when it has not run."""
    return _read(path)


def read_data_flow(path: Path = DATA_FLOW) -> dict[str, Any] | None:
    """What the ingestion did with every source; None when it has not run."""
    return _read(path)


def read_published(path: Path = PUBLISHED) -> dict[str, Any] | None:
    """What the last publication did: `{"version", "address", "is_new", "reasons"}`, or None."""
    return _read(path)


def reads_outside(params: Params, path: Path = OUTSIDE) -> bool:
    """Whether a stage reads, or read, what neither DVC nor git looks at."""
    return any(params.outside().values()) or any((_read(path) or {}).values())


def last_record(stage: str, timings: Path = TIMINGS) -> dict[str, Any]:
    """What the last run of a stage on this machine left on record; empty where there is none."""
    try:
        record = json.loads((timings / f"{stage}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
