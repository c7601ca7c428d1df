"""Self Positioning: search the merged model's place among task vectors by gradient descent.

The place is theta_0 + lambda V, where V folds the task vectors V_1 .. V_N by spherical
interpolation with weights a_1 .. a_N; these N + 1 scalars are all that is learnt. V lies in the
span of the V_i, V = sum of c_i V_i, and the c_i follow from a and the dot products of the V_i
alone. So the vectors are never in memory together: a step forms the merged weights tensor by
tensor, takes the ordinary gradient g of the loss, and d loss / d c_i is the dot product g V_i.

Shape letters: N = task vectors.

Source: Li et al. 2024, arXiv:2410.15035.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder.pace import Pace
from model.merging.slerp import slerp_factors
from model.merging.task_vectors import TaskVectors

# softplus of it is 1: all weights and the length start there
RAW_ONE = math.log(math.e - 1)
SMALLEST = 1e-8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where the search ended.

    Attributes:
        weights: a_1 .. a_N, positive.
        length: lambda, positive.
        coefficients: lambda c_i: the merged model is theta_0 + the sum of these times V_i.
        losses: Contrastive loss at each step, in nats, the penalty not included.
    """

    weights: list[float]
    length: float
    coefficients: list[float]
    losses: list[float]


def fold(gram_NN: Tensor, weight_N: Tensor) -> Tensor:
    """Coefficients c_i of the pairwise spherical fold V = sum of c_i V_i, (N,).

    Vector k joins at t_k = a_k / (mean of a_1 .. a_(k-1) + a_k) on the arc from the running
    result to V_k. The order counts from three vectors on. Differentiable in the weights.

    Args:
        gram_NN: Dot products of the task vectors, float64.
        weight_N: a_1 .. a_N, positive.
    """
    one_NN = torch.eye(len(gram_NN), dtype=gram_NN.dtype)
    running_N = one_NN[0]
    for k in range(1, len(gram_NN)):
        norm = torch.sqrt(running_N @ gram_NN @ running_N)
        cosine = running_N @ gram_NN[:, k] / (norm * torch.sqrt(gram_NN[k, k]))
        t = weight_N[k] / (weight_N[:k].mean() + weight_N[k])
        left, right = slerp_factors(cosine, t)
        running_N = left * running_N + right * one_NN[k]
    return running_N


def search_position(
    parameters: dict[str, nn.Parameter],
    vectors: TaskVectors,
    backward_at: Callable[[int], float],
    *,
    steps: int,
    learning_rate: float,
    size_penalty: float,
) -> Position:
    """Minimise the loss plus size_penalty * lambda over a_1 .. a_N and lambda, with Adam.

    Args:
        parameters: Parameters of the model, under the names of `vectors`; overwritten.
        vectors: The task vectors.
        backward_at: Given a step counted from 0, adds the gradient of the loss of its probe batch
            to the parameters and returns that loss, in nats.
        steps: Gradient steps; with 0 all weights and the length are 1.
        learning_rate: Of Adam; 5e-3 in the authors' code.
        size_penalty: mu; recommended below 0.05, from 0.1 on it shrinks towards the base.

    Raises:
        ValueError: A task vector is zero, names differ, or the loss is not finite.
    """
    _require_same_names(parameters, vectors)
    gram_NN = vectors.gram()
    raw = torch.full((len(gram_NN) + 1,), RAW_ONE, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=learning_rate)
    losses: list[float] = []
    pace = Pace(steps)
    for step in range(steps):
        coefficient_N, length = _place(gram_NN, raw)
        _overwrite(parameters, vectors, coefficient_N.tolist())
        losses.append(backward_at(step))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the probe loss is {losses[-1]} at step {step}: lower learning_rate")
        slope_N = vectors.along(_take_gradients(parameters))
        optimizer.zero_grad()
        (coefficient_N @ slope_N + size_penalty * length).backward()
        optimizer.step()
        if pace.is_due(step + 1):
            line = "step %d/%d loss %.4f nats, %.0f s left"
            logger.info(line, step + 1, steps, losses[-1], pace.seconds_left)
    coefficient_N, length = _place(gram_NN, raw.detach())
    weight_N = F.softplus(raw.detach()[:-1]) + SMALLEST
    return Position(weight_N.tolist(), float(length), coefficient_N.tolist(), losses)


def _require_same_names(parameters: dict[str, nn.Parameter], vectors: TaskVectors) -> None:
    differing = sorted(set(vectors.names) ^ set(parameters))
    if differing:
        raise ValueError(
            f"tensors of the folders and parameters of the model differ: {differing[:3]}"
        )


def _place(gram_NN: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    scalars = F.softplus(raw) + SMALLEST
    return scalars[-1] * fold(gram_NN, scalars[:-1]), scalars[-1]


@torch.no_grad()
def _overwrite(
    parameters: dict[str, nn.Parameter], vectors: TaskVectors, coefficients: list[float]
) -> None:
    position = vectors.at(coefficients)
    for name in vectors.names:
        parameters[name].copy_(position(name))


def _take_gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of the parameters that have one, which are left without."""
    gradients = {name: p.grad.cpu() for name, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return gradients
