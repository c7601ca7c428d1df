"""What each stage cost, and from which inputs the run was made."""

from typing import Any

import yaml

from tasks.report import numbers
from tasks.report.run import Run

STAGES = (
    "ingest",
    "validate",
    "synthesize",
    "teach",
    "backbone",
    "prune",
    "pretrain",
    "mine",
    "finetune",
    "multitask",
    "merge",
    "baseline",
    "evaluate",
    "gate",
)
"""Stages in the order of the chain."""
TABLES = ("ingest/examples", "ingest/development", "ingest/documents", "ingest/evaluation")


def cost_view(run: Run) -> dict[str, Any]:
    """Time, price, GPUs and peak memory per stage; one without a record did not run here."""
    timings = run.timings()
    names = [name for stage in STAGES for name in _runs_of(run, stage)]
    longest = max((own["wall_s"] for own in timings.values()), default=0) or 1
    largest = max((own["peak_bytes"] for own in timings.values()), default=0) or 1
    rows = []
    for name in names:
        own = timings.get(name)
        row: dict[str, Any] = {"stage": name, "ran": own is not None}
        if own is not None:
            row |= {
                "time": numbers.duration(own["wall_s"]),
                "price": run.params.cost.of(own["wall_s"], own.get("gpu_s", 0.0)),
                "gpus": numbers.duration(own["gpu_s"]) if "gpu_s" in own else "",
                "energy": numbers.energy(own["energy_j"]) if "energy_j" in own else "",
                "time_width": round(100 * own["wall_s"] / longest, 1),
                "memory": numbers.memory(own["peak_bytes"]),
                "memory_width": round(100 * own["peak_bytes"] / largest, 1),
            }
        rows.append(row)
    total, gpu_seconds, joules = (
        sum(timings[name].get(what, 0.0) for name in names if name in timings)
        for what in ("wall_s", "gpu_s", "energy_j")
    )
    price = run.params.cost.of(total, gpu_seconds)
    return {
        "rows": rows,
        "total": numbers.duration(total) if total else None,
        "price": price,
        "gpus": numbers.duration(gpu_seconds) if gpu_seconds else None,
        "energy": numbers.energy(joules) if joules else None,
        "columns": 4 + (price is not None) + bool(gpu_seconds) + bool(joules),
    }


def inputs_view(run: Run) -> dict[str, Any]:
    """Hashes by which two runs can be told apart, and the parameters themselves."""
    hashes = [
        {"name": "params.yaml", "value": run.params_sha256(), "what": "SHA-256 of its values"}
    ]
    hashes += [
        {"name": table, "value": run.manifest_sha256(table), "what": "SHA-256 of the manifest"}
        for table in TABLES
    ]
    hashes.append(
        {
            "name": run.params.publish.checkpoint,
            "value": run.decision()["candidate"]["fingerprint"],
            "what": "fingerprint of the model",
        }
    )
    values = run.params.model_dump(mode="json", by_alias=True)
    sections = [
        {
            "name": name,
            "text": yaml.safe_dump(section, allow_unicode=True, sort_keys=False, width=88),
        }
        for name, section in values.items()
    ]
    return {"hashes": [row for row in hashes if row["value"]], "sections": sections}


def _runs_of(run: Run, stage: str) -> list[str]:
    if stage == "multitask":
        return [f"multitask@{name}" for name in run.params.multitask.variants]
    if stage == "evaluate":
        return [f"evaluate@{rung}" for rung in run.params.evaluate.checkpoints]
    return [stage]
