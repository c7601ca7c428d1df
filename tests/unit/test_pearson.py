"""The Pearson loss against scipy."""

import pytest
import torch
from scipy.stats import pearsonr
from torch import nn

from model.losses.pearson import pearson


def test_value_is_one_minus_the_correlation_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    query, document = nn.functional.normalize(torch.randn(2, 9, 6, generator=generator), dim=-1)
    score = torch.rand(9, generator=generator)
    cosine = (query.double() * document.double()).sum(-1).numpy()
    expected = 1 - pearsonr(cosine, score.double().numpy()).statistic
    assert pearson(query, document, score).item() == pytest.approx(expected, rel=1e-5)


def test_equal_grades_give_no_gradient_and_no_nan() -> None:
    query = torch.eye(3).requires_grad_()
    loss = pearson(query, torch.eye(3).roll(1, 0), torch.ones(3))
    loss.backward()
    assert loss.item() == 1.0
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()
