"""Muon: momentum of a weight matrix, made orthogonal before it is added.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". torch.optim.Muon is
the same rule; it takes one matrix at a time and always in bfloat16, which a processor without such
instructions emulates. Here all matrices of one shape go through together, in the precision of the
training.

Shape letters: N = matrices of one shape, R = rows, C = columns.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.precision import Precision

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: singular values of 0 to 1 end between 0.7 and 1.2 after five rounds."""
ROUNDS = 5
SMALLEST = 1e-7
MATRIX_NDIM = 2


class Muon(torch.optim.Optimizer):
    """For weight matrices inside a network; embeddings, norms and heads belong to AdamW.

    Args:
        matrices: All of two dimensions.
        weight_decay: Decoupled, times the learning rate.
        precision: Of the products that make the momentum orthogonal; weights and momentum keep
            their own type.

    Raises:
        ValueError: A parameter is no matrix.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, weight_decay: float, precision: Precision
    ) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for each in self.param_groups[0]["params"]:
            if each.ndim != MATRIX_NDIM:
                shape = tuple(each.shape)
                raise ValueError(f"Muon takes matrices, not parameters of shape {shape}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG002
        """One step with the learning rate of each group."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates_NRC = torch.stack([self._momentum(each) for each in matrices])
                orthogonal_NRC = orthogonalize(updates_NRC.to(self._dtype))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, update_RC in zip(matrices, orthogonal_NRC, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update_RC.to(matrix.dtype), alpha=-scale)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        """Nesterov's: the gradient and the running mean, which already holds it."""
        gradient = matrix.grad
        if gradient is None:
            raise ValueError(f"a matrix of shape {tuple(matrix.shape)} has no gradient")
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum"], MOMENTUM)


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """The nearest matrices with orthogonal rows or columns, roughly: UV' of each USV'.

    Newton-Schulz iterations in the type of the input; singular values end near 1, not at it.
    """
    is_tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    wide_NRC = matrices_NRC.mT if is_tall else matrices_NRC
    wide_NRC = wide_NRC / (wide_NRC.norm(dim=(1, 2), keepdim=True) + SMALLEST)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square_NRR = wide_NRC @ wide_NRC.mT
        polynomial_NRR = torch.baddbmm(square_NRR, square_NRR, square_NRR, beta=b, alpha=c)
        wide_NRC = torch.baddbmm(wide_NRC, polynomial_NRR, wide_NRC, beta=a)
    return wide_NRC.mT if is_tall else wide_NRC
