"""Candidates that look like further positives, by a model's own scores: the student or a guide.

Shape letters: R = rows of a slice, X = candidates of a term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.losses.contrastive import Similarities
from model.losses.terms import EXPLICIT_TERMS, Term


@dataclass(frozen=True)
class FalseNegativeSettings:
    """When a candidate is taken for a further positive and left out."""

    margin: float
    """How far above (student) or below (guide) the positive's score the bound lies."""
    kind: Literal["absolute", "relative"] = "absolute"
    """The bound is the positive's score plus the margin, or times one plus the margin; write a
    guide's bound below the positive as a negative margin."""
    in_batch: bool = True
    """Whether negatives nobody chose for the row are judged."""
    explicit: bool = False
    """Whether a row's own hard negatives are judged, which mining has judged already."""
    except_terms: tuple[Term, ...] = ("documents",)
    """Terms never judged: the papers define no score between two documents."""


@torch.no_grad()
def likely_negatives(
    scores: Similarities, terms: Sequence[Term], settings: FalseNegativeSettings
) -> Mapping[Term, Tensor]:
    """(R, X) bool per term: False where a candidate scores above the bound of its row.

    Args:
        scores: Cosines of the model that judges, at its full dimension.
        terms: Terms to judge.
        settings: The bound.

    Source: Qwen3 Embedding, arXiv:2506.05176, eq. 2 (student, absolute 0.1); Solatorio 2024,
    arXiv:2402.16829 (guide, margin 0). The relative bound moves up by a share of the score's size,
    so a negative score has no bound on the wrong side of it.
    """
    positive_R = scores.positive()
    shift_R = settings.margin * (positive_R.abs() if settings.kind == "relative" else 1.0)
    bound_R1 = (positive_R + shift_R)[:, None]
    kept: dict[Term, Tensor] = {}
    for term in terms:
        is_judged = settings.explicit if term in EXPLICIT_TERMS else settings.in_batch
        cosine_RX = scores.of(term)
        if is_judged and term not in settings.except_terms:
            kept[term] = cosine_RX <= bound_R1
        else:
            kept[term] = torch.ones_like(cosine_RX, dtype=torch.bool)
    return kept
