"""The loss of a batch of graded pairs.

Shape letters: B = pairs, M = 2 B texts, D = embedding size.
"""

import torch
from torch import Tensor

from model.losses.cosent import cosent
from model.losses.matryoshka import matryoshka_mean, unit_prefixes
from model.losses.pearson import pearson
from model.training.data.batches import Batch
from model.training.devices.team import Team
from model.training.objective.frozen import FrozenVectors
from model.training.objective.loss_report import LossReport
from model.training.objective.loss_terms import LossTerms
from model.training.objective.teacher_terms import TeacherTerms
from model.training.settings import LossSettings


class GradedObjective:
    """A loss of graded pairs at every Matryoshka size, one value for the batch.

    Its rows are never parted, so one process scores them all.
    """

    def __init__(
        self,
        batch: Batch,
        loss: LossSettings,
        *,
        sizes: list[int],
        device: torch.device,
        frozen: FrozenVectors,
    ) -> None:
        assert batch.scores is not None  # noqa: S101 - the caller chose by it
        self._score_B = torch.from_numpy(batch.scores).to(device)
        self._loss = loss
        self._sizes = sizes
        self._teacher = TeacherTerms(batch, loss, sizes, frozen.teacher_MD)
        own = [loss.graded] if loss.contrastive_weight else []
        self._terms = LossTerms([*own, *self._teacher.names], device)

    def loss_and_gradient(self, embedding_MD: Tensor, team: Team) -> tuple[Tensor, Tensor]:
        """The loss of the (M, D) embeddings and its gradient; 0 on all but the leading process."""
        if not team.leads:
            return embedding_MD.new_zeros((), dtype=torch.float32), torch.zeros_like(embedding_MD)
        leaf_MD = embedding_MD.detach().requires_grad_()
        loss = self._whole(leaf_MD)
        [gradient_MD] = torch.autograd.grad(loss, [leaf_MD])
        return loss.detach(), gradient_MD

    def report(self, team: Team) -> LossReport:
        """The terms of the loss, once the leading process has computed it; no candidates."""
        self._terms.add_up(team)
        return LossReport(losses=self._terms.values())

    def _whole(self, embedding_MD: Tensor) -> Tensor:
        num_rows = len(self._score_B)

        def graded(prefix_MD: Tensor) -> Tensor:
            pair = prefix_MD[:num_rows], prefix_MD[num_rows:]
            if self._loss.graded == "pearson":
                return pearson(*pair, self._score_B)
            return cosent(*pair, self._score_B, self._loss.temperature)

        prefixes = unit_prefixes(embedding_MD, self._sizes)
        weights = self._loss.options.matryoshka_weights
        terms: dict[str, Tensor] = {}
        if self._loss.contrastive_weight:
            own = matryoshka_mean(graded, prefixes, weights)
            terms[self._loss.graded] = self._loss.contrastive_weight * own
        for name in self._teacher.names:
            whole = self._teacher.of(name, embedding_MD, slice(0, num_rows))
            terms[name] = whole / num_rows
        return self._terms.join(terms)
