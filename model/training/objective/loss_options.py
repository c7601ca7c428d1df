"""What a loss may have beyond its published form; nothing by default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.losses.false_negatives import FalseNegativeSettings
from model.losses.terms import Term


@dataclass(frozen=True)
class DivergenceSettings:
    """A divergence from a teacher's choice among candidates."""

    weight: float
    """Factor on the term."""
    teacher_temperature: float
    """Divides the teacher's scores; the student's cosine is divided by the loss's temperature."""


@dataclass(frozen=True)
class TripletSettings:
    """A triplet loss over own hard negatives."""

    weight: float
    """Factor on the term."""
    margin: float
    """Cosine distance."""


@dataclass(frozen=True)
class MatchingSettings:
    """A distance from a teacher's vectors."""

    weight: float
    """Factor on the term."""
    size: int | None
    """Leading numbers compared; None takes the student's full size."""


@dataclass(frozen=True)
class LossOptions:
    """Terms and masks that are added to a preset, or take the place of its own."""

    softmaxes: Sequence[Sequence[Term]] | None = None
    """Terms of each softmax, in place of the preset's."""
    student_margin: FalseNegativeSettings | None = None
    """Mask by the student's scores, in place of the preset's."""
    guide: FalseNegativeSettings | None = None
    """Mask by the scores of a frozen guide."""
    soft_labels: DivergenceSettings | None = None
    """Divergence from the teacher scores that the rows bring."""
    triplet: TripletSettings | None = None
    embeddings: MatchingSettings | None = None
    """Distance from a frozen teacher's vectors."""
    similarities: DivergenceSettings | None = None
    """Divergence from a frozen teacher's choice among the documents of the batch."""
    matryoshka_weights: Mapping[int, float] = field(default_factory=dict)
    """Size to a factor on its loss; 1 for those not named."""
