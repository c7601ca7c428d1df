"""Muon against torch's own, and against what singular values say in float64."""

import pytest
import torch
from torch import nn

from model.muon import COEFFICIENTS, ROUNDS, Muon, orthogonalize

SHAPES = [(6, 4), (4, 6), (5, 5), (6, 4)]


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_steps_are_those_of_torch() -> None:
    ours, theirs = matrices(1), matrices(1)
    mine = Muon(ours, weight_decay=0.1, precision="bf16")
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for step in range(5):
        for group in mine.param_groups:
            group["lr"] = 0.02
        for matrix, other, gradient in zip(ours, theirs, matrices(10 + step), strict=True):
            matrix.grad = gradient.detach().clone()
            other.grad = gradient.detach().clone()
        mine.step()
        reference.step()
    start = matrices(1)
    for matrix, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert (matrix - other).norm() < 0.02 * moved  # bfloat16 keeps eight bits


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 7, 5), (1, 4, 4)])
def test_the_update_has_the_polynomial_of_every_singular_value(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    u, s, vh = torch.linalg.svd(given, full_matrices=False)
    s = s / given.norm(dim=(1, 2))[:, None]
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    expected = u @ torch.diag_embed(s) @ vh
    assert torch.allclose(orthogonalize(given), expected, atol=1e-6)
    assert ((s > 0.5) & (s < 1.3)).all()


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not parameters of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], weight_decay=0.0, precision="fp32")
