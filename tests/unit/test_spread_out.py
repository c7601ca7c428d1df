"""The spread-out regulariser written out in float64, and its slices."""

import numpy as np
import pytest
import torch
from torch import nn

from model.losses.spread_out import spread_out

VECTORS = nn.functional.normalize(
    torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=-1
)
QUERY, POSITIVE = VECTORS[:6], VECTORS[6:]


def test_value_is_the_mean_square_over_all_other_pairs() -> None:
    expected = 0.0
    for side in (QUERY.double().numpy(), POSITIVE.double().numpy()):
        squares = [(side[i] @ side[j]) ** 2 for i in range(6) for j in range(6) if i != j]
        expected += np.mean(squares)
    assert spread_out(QUERY, POSITIVE, slice(0, 6)).item() / 6 == pytest.approx(expected, rel=1e-5)


def test_slices_add_up() -> None:
    parts = [spread_out(QUERY, POSITIVE, rows) for rows in (slice(0, 2), slice(2, 5), slice(5, 6))]
    torch.testing.assert_close(sum(parts), spread_out(QUERY, POSITIVE, slice(0, 6)))


def test_orthogonal_texts_cost_nothing_and_equal_ones_two() -> None:
    assert spread_out(torch.eye(4), torch.eye(4), slice(0, 4)).item() == pytest.approx(0, abs=1e-6)
    same = torch.tensor([[1.0, 0.0]] * 4)
    assert spread_out(same, same, slice(0, 4)).item() / 4 == pytest.approx(2.0)


def test_a_batch_of_one_costs_nothing() -> None:
    assert spread_out(QUERY[:1], POSITIVE[:1], slice(0, 1)).item() == pytest.approx(0, abs=1e-6)
