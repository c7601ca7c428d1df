"""What a run is called in the UI and in messages: what it does, and when it began."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect.runtime import flow_run


def run_name() -> str:
    """That of the flow run which is beginning; until then Prefect shows two words of its own."""
    return name_of(flow_run.get_parameters(), datetime.now(UTC).astimezone())


def name_of(parameters: Mapping[str, Any], began: datetime) -> str:
    """`retrain 2026-11-28 09:30`, and what was asked for beside that."""
    words = ["dry run" if parameters.get("dry_run") else "retrain", f"{began:%Y-%m-%d %H:%M}"]
    if parameters.get("profile"):
        words.append(f"profile {parameters['profile']}")
    if parameters.get("stages"):
        words.append(f"only {', '.join(parameters['stages'])}")
    if parameters.get("from_stage"):
        words.append(f"from {parameters['from_stage']}")
    if parameters.get("force"):
        words.append(f"forced {', '.join(parameters['force'])}")
    return " ".join(words)
