"""Terms over a row's positive and its own hard negatives: soft labels and triplets.

Shape letters: B = rows, H = hard negatives of all rows, R = rows of a slice, K = own hard negatives
of a row at most, J = 1 + K, the positive first, D = embedding size.
"""

import torch
from torch import Tensor

from model.losses.contrastive import Similarities
from model.losses.divergence import divergence
from model.losses.triplet import triplet
from model.training.data.batches import Batch
from model.training.data.candidates import OwnNegatives
from model.training.settings import LossSettings


class HardNegativeTerms:
    """The terms that the settings ask for; without any there is nothing to compute."""

    def __init__(self, batch: Batch, loss: LossSettings, device: torch.device) -> None:
        """Take the teacher scores that the rows bring."""
        self._soft = loss.options.soft_labels
        self._triplet = loss.options.triplet
        self._temperature = loss.temperature
        teacher_N = torch.from_numpy(batch.teacher_scores).to(device)
        self._teacher_B, self._teacher_H = teacher_N.tensor_split([batch.num_queries])
        wanted = {"soft_labels": self._soft, "triplet": self._triplet}
        self.names = [name for name, settings in wanted.items() if settings is not None]

    def of(self, name: str, similarities: Similarities, own: OwnNegatives) -> Tensor:
        """A term with its weight, summed over the rows, of embeddings or a prefix of them."""
        cosine_RJ = self._cosines(similarities, own)
        if name == "triplet" and self._triplet is not None:
            margin = self._triplet.margin
            hinge = triplet(cosine_RJ[:, 0], cosine_RJ[:, 1:], own.judged_RK, margin)
            return self._triplet.weight * hinge
        assert self._soft is not None  # noqa: S101 - the names hold no other
        teacher_RJ, counts_RJ = self._labels(own, similarities.rows)
        return self._soft.weight * divergence(
            cosine_RJ / self._temperature, teacher_RJ / self._soft.teacher_temperature, counts_RJ
        )

    def labelled_rows(self, own: OwnNegatives, rows: slice) -> int:
        """Rows whose teacher scores are all known; the others add nothing to the soft labels."""
        if self._soft is None:
            return 0
        _, counts_RJ = self._labels(own, rows)
        return int(counts_RJ[:, 1:].any(dim=1).sum())

    def _cosines(self, similarities: Similarities, own: OwnNegatives) -> Tensor:
        negative_RKD = similarities.negative_HD.float()[own.place_RK]
        negative_RK = (similarities.query_RD[:, None] * negative_RKD).sum(dim=-1)
        return torch.cat([similarities.positive()[:, None], negative_RK], dim=1)

    def _labels(self, own: OwnNegatives, rows: slice) -> tuple[Tensor, Tensor]:
        """Teacher scores (R, J) and where they count.

        Likely positives stay among them: the teacher has said how likely they are.
        """
        negative_RK = self._teacher_H[own.place_RK].masked_fill(~own.by_text_RK, 0.0)
        teacher_RJ = torch.cat([self._teacher_B[rows][:, None], negative_RK], dim=1)
        is_known_R1 = teacher_RJ.isfinite().all(dim=1, keepdim=True)
        is_first_R1 = torch.ones_like(is_known_R1)
        counts_RJ = torch.cat([is_first_R1, own.by_text_RK & is_known_R1], dim=1)
        # one candidate gives 0 whatever its score, but not where that is NaN
        return teacher_RJ.nan_to_num(), counts_RJ
