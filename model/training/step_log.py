"""What happened at each step, one JSON line per step, cut back to the checkpoint on resume.

No line holds a time, so equal trainings write equal bytes.
"""

import csv
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any, Self

from model.training.objective.loss_report import REPORT_FIELDS, LossReport
from model.writing import writing


@dataclass(frozen=True)
class StepRecord:
    """One line of the log."""

    step: int
    source: str
    loss: float
    """Nats."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    pairs: int
    """Queries of the step."""
    report: LossReport
    """What the loss told."""
    tokens: int
    """Padding excluded."""
    micro_batches: int
    """Forward passes the batch was cut into."""
    is_grad_cached: bool
    """Whether the batch was embedded twice to fit the memory."""

    def to_json(self) -> dict[str, Any]:
        """One flat mapping, the report among the other values; `from_json` is the inverse."""
        content: dict[str, Any] = {}
        for name, value in asdict(self).items():
            content |= value if name == "report" else {name: value}
        memory_negatives = content.pop("memory_negatives")  # its place in every log so far: the end
        return content | {"memory_negatives": memory_negatives}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "StepRecord":
        """Record from the mapping `to_json` gave."""
        told = {name: content[name] for name in REPORT_FIELDS if name in content}
        own = {name: value for name, value in content.items() if name not in told}
        return cls(report=LossReport(**told), **own)


class StepLog:
    """Appends records to a file; a context manager that closes it."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        """Open `path` with its first `keep_bytes` kept and the rest cut off.

        Raises:
            ValueError: The file is shorter than that, so lines of the past are missing.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            raise ValueError(
                f"{path} has {size} bytes but the checkpoint was taken at {keep_bytes}: "
                f"the log was changed; delete the folder {path.parent} to train from the start"
            )
        self._path = path
        self._stream: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._stream.truncate(keep_bytes)
        self._stream.seek(keep_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._path):
            self._stream.close()

    def append(self, record: StepRecord) -> None:
        """Write one line and hand it to the operating system."""
        line = (json.dumps(record.to_json(), allow_nan=False) + "\n").encode()
        with writing(self._path):
            self._stream.write(line)
            self._stream.flush()

    def sync(self) -> int:
        """Force the lines to the disk and return the size of the file in bytes."""
        with writing(self._path):
            os.fsync(self._stream.fileno())
        return self._stream.tell()


def read_records(path: Path) -> list[StepRecord]:
    """All records of a log."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [StepRecord.from_json(json.loads(line)) for line in lines if line]


CURVES = ("loss", "learning_rate", "grad_norm", "in_batch_negatives", "masked_share")


def write_curves(records: list[StepRecord], path: Path, every_steps: int) -> None:
    """Write a CSV with one row per `every_steps` steps, each value the mean over them.

    The column `step` is the last step of the window.
    """
    with writing(path), path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("step", *CURVES))
        for start in range(0, len(records), every_steps):
            window = [record.to_json() for record in records[start : start + every_steps]]
            means = (f"{fmean(values[name] for values in window):.6g}" for name in CURVES)
            writer.writerow((window[-1]["step"], *means))


def summarise(records: list[StepRecord]) -> dict[str, Any]:
    """Metrics of a whole training: `first_loss` and `last_loss` are means over a tenth of it."""
    tenth = max(1, len(records) // 10)
    names = sorted({record.source for record in records})
    by_source = {name: [r for r in records if r.source == name] for name in names}
    return {
        "steps": len(records),
        "pairs_seen": sum(record.pairs for record in records),
        "first_loss": _mean_loss(records[:tenth]),
        "last_loss": _mean_loss(records[-tenth:]),
        "masked_share": fmean(record.report.masked_share for record in records),
        "masked_by_score": fmean(record.report.masked_by_score for record in records),
        "masked_by_guide": fmean(record.report.masked_by_guide for record in records),
        "soft_label_rows": sum(record.report.soft_label_rows for record in records),
        "in_batch_negatives": fmean(record.report.in_batch_negatives for record in records),
        "hard_negatives": fmean(record.report.hard_negatives for record in records),
        "memory_negatives": fmean(record.report.memory_negatives for record in records),
        "tokens_seen": sum(record.tokens for record in records),
        "by_source": {
            name: {
                "steps": len(own),
                "pairs_seen": sum(record.pairs for record in own),
                "first_loss": _mean_loss(own[: max(1, len(own) // 10)]),
                "last_loss": _mean_loss(own[-max(1, len(own) // 10) :]),
            }
            for name, own in by_source.items()
        },
    }


def _mean_loss(records: list[StepRecord]) -> float:
    return fmean(record.loss for record in records)
