"""Which candidates count as negatives of which row: by text, then by score.

Shape letters: M = texts of a batch, R = rows of a slice, X = candidates of a term, K = own hard
negatives of a row at most, D = embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.losses.contrastive import Similarities
from model.losses.false_negatives import FalseNegativeSettings, likely_negatives
from model.losses.masks import MASK_REASONS, BatchTexts, MaskCounts, TextMask
from model.losses.terms import Term
from model.training.devices.team import Team


@dataclass(frozen=True)
class ScoreMasks:
    """Models that judge what the texts allow; None where one does not."""

    student: FalseNegativeSettings | None = None
    guide: FalseNegativeSettings | None = None
    guide_MD: Tensor | None = None
    """The guide's vectors of all texts of the batch."""


@dataclass
class CandidateCounts:
    """What became of the candidates of the rows asked for so far."""

    texts: MaskCounts = field(default_factory=MaskCounts)
    by_student: int = 0
    """Of those the texts allow, dropped by the student's score."""
    by_guide: int = 0
    """Of those the texts allow, dropped by the guide's score, whatever the student says."""

    def add_up(self, terms: Sequence[Term], team: Team, device: torch.device) -> None:
        """Make the counts those of the whole batch."""
        allowed = [self.texts.allowed.get(term, 0) for term in terms]
        masked = [self.texts.masked.get(reason, 0) for reason in MASK_REASONS]
        numbers = torch.tensor([*allowed, *masked, self.by_student, self.by_guide], device=device)
        *totals, self.by_student, self.by_guide = team.add_up(numbers).tolist()
        self.texts = MaskCounts(
            dict(zip(terms, totals, strict=False)),
            dict(zip(MASK_REASONS, totals[len(terms) :], strict=True)),
        )


@dataclass(frozen=True)
class OwnNegatives:
    """The hard negatives of each row of a slice, side by side."""

    place_RK: Tensor
    """Number among the hard negatives of all rows; 0 where a row has no more."""
    by_text_RK: Tensor
    """Whether there is a negative and its text allows it."""
    judged_RK: Tensor
    """Whether it passes the masks by score as well."""


class Candidates:
    """The negatives of the rows of a batch."""

    def __init__(self, texts: BatchTexts, masks: ScoreMasks, device: torch.device) -> None:
        """Compare the texts of the batch."""
        self.text_mask = TextMask(texts)
        self._owner_X = texts.owners[self.text_mask.num_rows :]
        self._masks = masks
        self._device = device

    @property
    def most(self) -> int:
        """Candidates of the largest term."""
        return self.text_mask.most_candidates

    def allowed(
        self, terms: Sequence[Term], full: Similarities, counts: CandidateCounts
    ) -> dict[Term, Tensor]:
        """(R, X) bool for each term of one softmax; `full` are the student's similarities."""
        by_text = self._by_text(terms, full.rows, counts.texts)
        return self._judged(by_text, full, counts)

    def own_negatives(self, full: Similarities) -> OwnNegatives:
        """The hard negatives of the rows; they are counted nowhere."""
        by_text = self._by_text(["own_negatives"], full.rows, MaskCounts())
        judged = self._judged(by_text, full, CandidateCounts())
        place_RK, is_there_RK = own_places(
            self._owner_X, np.arange(self.text_mask.num_rows)[full.rows]
        )
        place = torch.from_numpy(place_RK).to(self._device)
        is_there = torch.from_numpy(is_there_RK).to(self._device)
        return OwnNegatives(
            place,
            by_text["own_negatives"].gather(1, place) & is_there,
            judged["own_negatives"].gather(1, place) & is_there,
        )

    def _by_text(
        self, terms: Sequence[Term], rows: slice, counts: MaskCounts
    ) -> dict[Term, Tensor]:
        found = self.text_mask.allowed(terms, rows, counts)
        return {term: torch.from_numpy(mask).to(self._device) for term, mask in found.items()}

    def _judged(
        self, by_text: Mapping[Term, Tensor], full: Similarities, counts: CandidateCounts
    ) -> dict[Term, Tensor]:
        kept: dict[Term, Tensor] = dict(by_text)
        masks = self._masks
        if masks.student is not None:
            counts.by_student += _apply(full, masks.student, by_text, kept)
        if masks.guide is not None and masks.guide_MD is not None:
            num_rows = self.text_mask.num_rows
            guide = Similarities(
                masks.guide_MD[:num_rows],
                masks.guide_MD[num_rows : 2 * num_rows],
                masks.guide_MD[2 * num_rows :],
                full.rows,
            )
            counts.by_guide += _apply(guide, masks.guide, by_text, kept)
        return kept


def _apply(
    scores: Similarities,
    settings: FalseNegativeSettings,
    by_text: Mapping[Term, Tensor],
    kept: dict[Term, Tensor],
) -> int:
    """Drop what the scores tell from `kept`; return how many of those the texts allow."""
    likely = likely_negatives(scores, list(by_text), settings)
    dropped = 0
    for term, mask in likely.items():
        dropped += int((by_text[term] & ~mask).sum())
        kept[term] = kept[term] & mask
    return dropped


def own_places(owner_X: np.ndarray, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (R, K) in `owner_X` that each row owns, rising, and where there is one."""
    order_X = np.argsort(owner_X, kind="stable")
    start_R = np.searchsorted(owner_X, row_R, sorter=order_X)
    count_R = np.searchsorted(owner_X, row_R, "right", sorter=order_X) - start_R
    column_K = np.arange(count_R.max(initial=0))
    is_there_RK = column_K < count_R[:, None]
    place_RK = np.where(is_there_RK, start_R[:, None] + column_K, 0)
    return (order_X[place_RK] if len(order_X) else place_RK), is_there_RK
