"""The loss of a step made of several sub-batches: their losses, weighted by their rows.

Each sub-batch is scored for itself, on its slice of the embeddings, so no text of one is a negative
of another; embedding and the backward pass are those of one batch.

Shape letters: M = texts of the step, D = embedding size.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from model.training.data.batches import Batch
from model.training.devices.team import Team
from model.training.objective.frozen import NO_VECTORS, FrozenVectors
from model.training.objective.loss_report import LossReport
from model.training.objective.objective import Objective, objective_of
from model.training.settings import LossSettings


class SumObjective:
    """Objectives over slices of the embeddings; loss and counts are means over all rows."""

    def __init__(self, sub_batches: list[Batch], objectives: list[Objective]) -> None:
        """Give each sub-batch the share of its rows."""
        rows = sum(sub_batch.num_queries for sub_batch in sub_batches)
        self._objectives = objectives
        self._weights = [sub_batch.num_queries / rows for sub_batch in sub_batches]
        self._lengths = [len(sub_batch.items) for sub_batch in sub_batches]

    def loss_and_gradient(self, embedding_MD: Tensor, team: Team) -> tuple[Tensor, Tensor]:
        """This process's share of the loss of the (M, D) embeddings and of its gradient, (M, D)."""
        total = embedding_MD.new_zeros((), dtype=torch.float32)
        gradients: list[Tensor] = []
        slices = embedding_MD.split(self._lengths)
        for objective, weight, own in zip(self._objectives, self._weights, slices, strict=True):
            loss, gradient = objective.loss_and_gradient(own, team)
            total += weight * loss
            gradients.append(weight * gradient)
        return total, torch.cat(gradients)

    def report(self, team: Team) -> LossReport:
        """What is told of the whole step; asked once, when every process has scored its rows."""
        reports = [objective.report(team) for objective in self._objectives]
        return LossReport.mean(reports, self._weights)


def objective_of_sub_batches(
    sub_batches: list[Batch],
    *,
    loss: LossSettings,
    sizes: list[int],
    device: torch.device,
    class_negatives: Literal["own", "batch"] = "own",
    frozen: FrozenVectors = NO_VECTORS,
) -> Objective | SumObjective:
    """The objective of each sub-batch by its task; of one alone, that objective itself.

    Args:
        sub_batches: All of the step.
        loss: What they are scored by.
        sizes: Sizes of the embeddings that are trained, largest first.
        device: Where the embeddings are.
        class_negatives: Whether classes and clusters are set against the rest of their sub-batch.
        frozen: What guide and teacher say of all texts of the step.
    """
    lengths = [len(sub_batch.items) for sub_batch in sub_batches]
    objectives = [
        objective_of(
            sub_batch,
            is_in_batch=sub_batch.is_in_batch or class_negatives == "batch",
            loss=loss if sub_batch.is_judged else replace(loss, contrastive_weight=0.0),
            sizes=sizes,
            device=device,
            frozen=vectors,
        )
        for sub_batch, vectors in zip(sub_batches, frozen.split(lengths), strict=True)
    ]
    return objectives[0] if len(objectives) == 1 else SumObjective(sub_batches, objectives)
