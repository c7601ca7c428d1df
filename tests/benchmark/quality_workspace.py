"""A folder in which single stages of a chain run again with other values or another model."""

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ("pretrain", "finetune", "multitask")

Values = dict[str, Any]

logger = logging.getLogger("compare_quality")


class Workspace:
    """Corpora and decoder of a checkout whose chain ran up to `prune`; all else is its own."""

    def __init__(
        self,
        checkout: Path,
        folder: Path,
        *,
        steps_share: float,
        change: Callable[[Values], object] = lambda _: None,
        change_model: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Set up the folder: `change` edits params.yaml, `change_model` the model of `prune`."""
        self.folder = folder
        artifacts = folder / "artifacts"
        artifacts.mkdir(parents=True)
        for name in ("ingest", "synthesize", "backbone"):
            if (checkout / "artifacts" / name).exists():
                (artifacts / name).symlink_to((checkout / "artifacts" / name).resolve())
        shutil.copytree(checkout / "artifacts" / "prune", artifacts / "prune")
        change_model(artifacts / "prune" / "model")
        values = yaml.safe_load((checkout / "params.yaml").read_text("utf-8"))
        for key, path in values["data"].items():
            values["data"][key] = str((checkout / path).resolve())
        for stage in TRAINED:
            training = values[stage]["training"] = copy.deepcopy(values[stage]["training"])
            training["max_steps"] = max(10, round(steps_share * training["max_steps"]))
            training["warmup_steps"] = min(training["warmup_steps"], training["max_steps"] // 5)
        change(values)
        self.values = values
        (folder / "params.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")

    def run(self, stage: str, *arguments: str) -> float:
        """Run a stage to its end; the seconds it took, its start included."""
        started = time.perf_counter()
        command = [sys.executable, "-m", f"tasks.{stage}", *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} in {self.folder}:\n{done.stderr[-3000:]}")
        return time.perf_counter() - started

    def score(self, rung: str) -> dict[str, float]:
        """Points of 100 by task, and their mean, of a checkpoint of evaluate.checkpoints."""
        self.run("evaluate", rung)
        file = self.folder / "artifacts" / "evaluate" / rung / "metrics.json"
        return {task: 100 * score for task, score in json.loads(file.read_text()).items()}


def set_seed(values: Values, seed: int) -> None:
    """Another seed for every training and for mining."""
    values["mine"]["seed"] = seed
    for stage in TRAINED:
        values[stage]["training"]["seed"] = seed
    for number, variant in enumerate(values["multitask"]["variants"].values()):
        variant["seed"] = 10 * seed + number
