"""What a loss tells of a batch beside its value and gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """Candidates and terms of the loss of a batch, or of a step made of several."""

    in_batch_negatives: float = 0.0
    """Candidates in the batch nobody chose for the row, allowed by the texts, mean over rows."""
    hard_negatives: float = 0.0
    """Own hard negatives allowed by the texts, mean over rows."""
    masked_share: float = 0.0
    """Candidates dropped for their text, over all."""
    masked_by_score: float = 0.0
    """Candidates dropped by the student's margin, over those the texts allow."""
    masked_by_guide: float = 0.0
    """Candidates dropped by the frozen guide, over those the texts allow."""
    soft_label_rows: int = 0
    """Rows whose teacher scores are known and took part; the others were passed over."""
    losses: dict[str, float] = field(default_factory=dict)
    """Terms of the loss, weights included; they add up to it."""
    memory_negatives: float = 0.0
    """Documents of earlier batches allowed by the texts, mean over rows."""

    @classmethod
    def mean(cls, reports: Sequence["LossReport"], weights: Sequence[float]) -> "LossReport":
        """Report of a step whose sub-batches have these shares of its rows."""
        losses: dict[str, float] = {}
        for report, weight in zip(reports, weights, strict=True):
            for name, loss in report.losses.items():
                losses[name] = losses.get(name, 0.0) + weight * loss
        means = {
            name: sum(
                weight * getattr(report, name)
                for report, weight in zip(reports, weights, strict=True)
            )
            for name in REPORT_FIELDS
            if name not in {"soft_label_rows", "losses"}
        }
        rows = sum(report.soft_label_rows for report in reports)
        return cls(soft_label_rows=rows, losses=losses, **means)


REPORT_FIELDS = tuple(each.name for each in fields(LossReport))
