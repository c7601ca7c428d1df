"""The files of a run that the report reads."""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contract.stage import StageError, read_json
from tasks.params.load import Params
from tasks.report.ladder import ladder_rows


@dataclass(frozen=True)
class Run:
    """Params and artifacts of one run.

    The decision of the gate and the scores must be there; a stage that did not run here has no
    numbers, and its section says so.
    """

    params: Params
    artifacts: Path

    def decision(self) -> dict[str, Any]:
        """What the gate decided."""
        return read_json(self.artifacts / "gate" / "decision.json")

    def base(self) -> dict[str, Any]:
        """Origin, licence and notices of the decoder."""
        return read_json(self.artifacts / "backbone" / "base" / "base.json")

    def metrics(self, stage: str) -> dict[str, Any] | None:
        """metrics.json of a stage; None when the stage did not run here."""
        return self.json(f"{stage}/metrics.json")

    def json(self, path: str) -> Any | None:  # noqa: ANN401 - any JSON value
        """A JSON file below artifacts/; None when it is not there."""
        file = self.artifacts / path
        return read_json(file) if file.exists() else None

    def ladder(self) -> list[dict[str, Any]]:
        """Every rung of evaluate.checkpoints.

        Raises:
            StageError: A rung has not been evaluated.
        """
        rows = ladder_rows(self.params, self.artifacts)
        missing = set(self.params.evaluate.checkpoints) - {row["rung"] for row in rows}
        if missing:
            raise StageError(f"no scores of {sorted(missing)}: run dvc repro evaluate")
        return rows

    def curve(self, stage: str) -> dict[str, list[float]] | None:
        """Columns of curves.csv of a training; None when there is none, or no row in it."""
        path = self.artifacts / stage / "curves.csv"
        if not path.exists():
            return None
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        if not rows:
            return None
        return {name: [float(row[name]) for row in rows] for name in rows[0]}

    def timings(self) -> dict[str, dict[str, float]]:
        """Wall time and peak memory of every stage that ran on this machine."""
        files = sorted((self.artifacts / "timings").glob("*.json"))
        return {path.stem: read_json(path) for path in files}

    def manifest_sha256(self, table: str) -> str | None:
        """Hash of a table's manifest, which holds the hash of each of its shards."""
        path = self.artifacts / table / "manifest.json"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None

    def params_sha256(self) -> str:
        """Hash of the values of params.yaml; a comment in the file is no other run."""
        values = self.params.model_dump(mode="json", by_alias=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
