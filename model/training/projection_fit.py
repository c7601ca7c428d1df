"""The projection of a model fitted to a teacher before the first step.

A projection begins with random numbers, and its first thousand steps go into finding out what the
states of the decoder already say. That part of the imitation is linear, so it has a closed form.

Shape letters: M = texts of a step, H = hidden size of the decoder, D = size of the vectors.
"""

import logging

import torch
from torch import Tensor

from model.encoder.encoder import Encoder
from model.encoder.precision import Precision, decoder_autocast
from model.encoder.tokenization import token_budget_batches
from model.training.data.batches import BatchPlan, Step
from model.training.devices.team import Team
from model.training.objective.frozen import FrozenModels
from model.training.settings import TrainSettings

RIDGE = 1e-2
"""Penalty on a weight, in shares of the mean square of the state it reads: a decoder's states
differ by orders of magnitude, so one penalty for all would leave the small ones out."""

logger = logging.getLogger(__name__)


class ProjectionFit:
    """Sums over texts, and the map that they give."""

    def __init__(self, hidden_size: int, size: int) -> None:
        self._states_HH = torch.zeros((hidden_size, hidden_size), dtype=torch.float64)
        self._both_HD = torch.zeros((hidden_size, size), dtype=torch.float64)
        self.texts = 0

    def add(self, pooled_MH: Tensor, teacher_MD: Tensor) -> None:
        """Take in pooled states of texts and the teacher's vectors of them."""
        pooled_MH, teacher_MD = pooled_MH.double().cpu(), teacher_MD.double().cpu()
        self._states_HH += pooled_MH.T @ pooled_MH
        self._both_HD += pooled_MH.T @ teacher_MD
        self.texts += len(pooled_MH)

    def solve(self) -> Tensor:
        """Weights (D, H) of the linear map with the least squared error, ridge added.

        Source: Hoerl and Kennard 1970, on states scaled to unit mean square.
        """
        penalty_H = RIDGE * self._states_HH.diagonal()
        # a state that is always zero has no say
        penalty_H = torch.where(penalty_H > 0, penalty_H, torch.ones_like(penalty_H))
        return torch.linalg.solve(self._states_HH + penalty_H.diag(), self._both_HD).T


@torch.no_grad()
def fit_projection(
    encoder: Encoder, plan: BatchPlan, frozen: FrozenModels, settings: TrainSettings, team: Team
) -> None:
    """Set the projection to what maps pooled states to the teacher's vectors best.

    The texts are those of the first steps of the training, `settings.fit_texts` at least.

    Raises:
        ValueError: There is no teacher or no projection, or it gives another size than the
            teacher.
    """
    wanted = settings.fit_texts
    if wanted is None:
        return
    if frozen.teacher is None or encoder.projection is None:
        raise ValueError("fit_texts fits a projection to a teacher: set both, or leave it out")
    was_training = encoder.training
    encoder.eval()
    fit: ProjectionFit | None = None
    for number in range(1, settings.max_steps + 1):
        step = plan.step(number)
        own = team.texts([len(item.ids) for item in step.items])
        budget, precision = settings.micro_batch_tokens, settings.precision
        teacher_MD = frozen.teacher.embed(step, own, team, budget, precision)
        if teacher_MD.shape[1] != encoder.embedding_size:
            raise ValueError(
                f"the teacher's vectors have {teacher_MD.shape[1]} numbers, but the projection "
                f"gives {encoder.embedding_size}: set backbone.projection to "
                f"{teacher_MD.shape[1]}, or fit_texts to null"
            )
        pooled_MH = team.gather(
            _pooled(encoder, step, own, budget, precision), own, len(step.items)
        )
        fit = fit or ProjectionFit(pooled_MH.shape[1], teacher_MD.shape[1])
        fit.add(pooled_MH, teacher_MD)
        if fit.texts >= wanted:
            break
    assert fit is not None  # noqa: S101 - a training has a step
    weight_DH = fit.solve().to(encoder.projection.weight)
    encoder.projection.weight.copy_(weight_DH)
    encoder.train(was_training)
    logger.info("fitted the projection to the teacher on %d texts", fit.texts)


def _pooled(
    encoder: Encoder, step: Step, own: list[int], budget_tokens: int, precision: Precision
) -> Tensor:
    """Pooled states (P, H) of the texts of this process."""
    lengths = [len(step.items[text].ids) for text in own]
    parts: dict[int, Tensor] = {}
    for batch in token_budget_batches(lengths, budget_tokens, is_packed=encoder.is_packed):
        with decoder_autocast(encoder.device, precision):
            rows = encoder.pooled([step.items[own[place]] for place in batch])
        parts.update(zip(batch, rows, strict=True))
    return torch.stack([parts[place] for place in range(len(own))])
