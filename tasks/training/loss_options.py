"""The terms and masks of a training section as plain values for the trainer."""

from model.losses.false_negatives import FalseNegativeSettings
from model.losses.presets import PRESETS
from model.training.objective.loss_options import (
    DivergenceSettings,
    LossOptions,
    MatchingSettings,
    TripletSettings,
)
from tasks.params.losses import ScoreMask
from tasks.params.training import Training

OPTIONS = frozenset(
    {"softmaxes", "student_margin", "guide", "soft_labels", "triplet", "teacher"}
    | {"matryoshka_weights"}
)
"""Keys of a training section that `loss_options` reads."""


def temperature_of(loss: str, given: float | None) -> float:
    """What divides the cosine: the value of params.yaml, or for null that of the published loss."""
    return PRESETS[loss].loss.temperature if given is None else given


def loss_options(training: Training) -> LossOptions:
    """What the section adds to its published loss."""
    soft, triplet, teacher = training.soft_labels, training.triplet, training.teacher
    embeddings = teacher.embeddings if teacher else None
    similarities = teacher.similarities if teacher else None
    return LossOptions(
        softmaxes=training.softmaxes,
        student_margin=_mask(training.student_margin, except_documents=True),
        # GIST judges pairs of documents as well
        guide=_mask(training.guide, except_documents=False),
        soft_labels=DivergenceSettings(**soft.model_dump()) if soft else None,
        triplet=TripletSettings(**triplet.model_dump()) if triplet else None,
        embeddings=MatchingSettings(**embeddings.model_dump()) if embeddings else None,
        similarities=DivergenceSettings(**similarities.model_dump()) if similarities else None,
        matryoshka_weights=training.matryoshka_weights,
    )


def _mask(mask: ScoreMask | None, *, except_documents: bool) -> FalseNegativeSettings | None:
    if mask is None:
        return None
    return FalseNegativeSettings(
        margin=mask.margin,
        kind=mask.kind,
        in_batch=mask.in_batch,
        explicit=mask.explicit,
        except_terms=("documents",) if except_documents else (),
    )
