"""The triplet loss against sentence-transformers and a loop in float64."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric, TripletLoss
from torch import Tensor, nn

from model.losses.triplet import triplet

MARGIN = 0.3


def unit(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 8, generator=generator), dim=-1)


def test_value_is_that_of_sentence_transformers_with_cosine_distance() -> None:
    query, positive, negative = unit(9, 0), unit(9, 1), unit(9, 2)
    model: Any = nn.Module()  # embeddings are given, the model is not called
    metric: Any = TripletDistanceMetric.COSINE
    reference = TripletLoss(model, distance_metric=metric, triplet_margin=MARGIN)
    expected = reference.compute_loss_from_embeddings([query, positive, negative], torch.empty(0))
    got = triplet(
        (query * positive).sum(-1),
        (query * negative).sum(-1, keepdim=True),
        torch.ones(9, 1, dtype=torch.bool),
        MARGIN,
    )
    assert got.item() / 9 > 0
    torch.testing.assert_close(got / 9, expected)


def test_value_is_the_mean_over_the_negatives_that_count_written_in_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    positive, negative = (2 * torch.rand(shape, generator=generator) - 1 for shape in (6, (6, 4)))
    counts = torch.rand(6, 4, generator=generator) < 0.6
    counts[0] = False
    expected = 0.0
    for row in range(1, 6):
        hinges = [
            max(0.0, (1 - float(positive[row])) - (1 - float(negative[row, k])) + MARGIN)
            for k in range(4)
            if counts[row, k]
        ]
        expected += float(np.mean(hinges))
    assert triplet(positive, negative, counts, MARGIN).item() == pytest.approx(expected, rel=1e-5)


def test_rows_without_negatives_add_nothing() -> None:
    nothing = torch.zeros(4, 0)
    assert triplet(torch.zeros(4), nothing, nothing.bool(), MARGIN).item() == 0.0
