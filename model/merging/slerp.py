"""Spherical interpolation of two vectors, of two models' weights, and of two task vectors.

Shape letters: N = vectors.
"""

import math

import torch
from torch import Tensor

from model.merging.task_vectors import TaskVectors
from model.merging.weights import SavedWeights, TensorSource, require_alike

# Beyond this |cosine| the arc is a line to float32 accuracy and sin(alpha) divides by almost 0.
# The value of mergekit and of Self Positioning.
LERP_COSINE = 0.9995


def slerp_factors(cosine: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the two vectors: sin((1-t) alpha) / sin(alpha) and sin(t alpha) / sin(alpha).

    Where |cosine| exceeds LERP_COSINE they are 1-t and t, that is, plain averaging. Vectors are
    not normalised: equal norms are kept, different ones interpolated. Differentiable in both.

    Args:
        cosine: Of the angle alpha between the vectors, scalar.
        t: 0 gives the first vector, 1 the second.
    """
    if cosine.detach().abs() > LERP_COSINE:
        return 1 - t, t
    alpha = torch.acos(cosine)
    return torch.sin((1 - t) * alpha) / torch.sin(alpha), torch.sin(t * alpha) / torch.sin(alpha)


def slerp_weights(
    first: SavedWeights, second: SavedWeights, t: float
) -> tuple[TensorSource, dict[str, float]]:
    """Two models' raw weights, each tensor on its own sphere, as mergekit's `slerp` does.

    Fine-tunes of one base nearly always have cosines beyond LERP_COSINE, and then this is plain
    averaging: look at the cosines. `slerp_task_vectors` is the merge that really turns.

    Args:
        first: The model at t = 0.
        second: The model at t = 1.
        t: Position on the arc.

    Returns:
        The merged tensors and the cosine of each tensor; a tensor of zeros counts as cosine 1.

    Raises:
        ValueError: Tensors differ in name or shape.
    """
    require_alike([first, second])
    cosines = {name: _cosine(first.tensor(name), second.tensor(name)) for name in first.names}

    def merged(name: str) -> Tensor:
        factors = _factors(cosines[name], t)
        return factors[0] * first.wide(name) + factors[1] * second.wide(name)

    return merged, cosines


def slerp_task_vectors(
    base: SavedWeights, first: SavedWeights, second: SavedWeights, t: float
) -> tuple[TensorSource, float]:
    """theta_0 + slerp(V_1, V_2): one angle over all tensors taken as one vector.

    Args:
        base: theta_0, which both models were trained from.
        first: The model at t = 0.
        second: The model at t = 1.
        t: Position on the arc.

    Returns:
        The merged tensors and the cosine between the task vectors.

    Raises:
        ValueError: Tensors differ in name or shape, or a model equals the base.

    Source: Li et al. 2024 (Self Positioning), arXiv:2410.15035, section 3.
    """
    vectors = TaskVectors(base, [first, second])
    cosine = float(cosines(vectors.gram())[0, 1])
    return vectors.at(_factors(cosine, t)), cosine


def cosines(gram_NN: Tensor) -> Tensor:
    """Cosines of all pairs of vectors, (N, N), from their dot products."""
    norm_N = gram_NN.diagonal().sqrt()
    return gram_NN / (norm_N[:, None] * norm_N[None, :])


def _factors(cosine: float, t: float) -> tuple[float, float]:
    left, right = slerp_factors(
        torch.tensor(cosine, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    )
    return float(left), float(right)


def _cosine(first: Tensor, second: Tensor) -> float:
    left, right = first.flatten().double(), second.flatten().double()
    norms = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / norms if norms > 0 else 1.0
