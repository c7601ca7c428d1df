"""Matryoshka against a loop in numpy and against sentence-transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from model.losses.contrastive import ContrastiveSettings, Similarities, contrastive_loss
from model.losses.matryoshka import (
    check_weights,
    matryoshka_mean,
    matryoshka_sizes,
    unit_prefixes,
)

SIZE = 16


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, SIZE, generator=generator), dim=-1)


def in_batch(embedding: Tensor) -> Tensor:
    """InfoNCE of as many queries as documents, one after the other, without any mask."""
    rows = len(embedding) // 2
    other = ~torch.eye(rows, dtype=torch.bool)
    sides = embedding.tensor_split([rows, 2 * rows])
    similarities = Similarities(*sides, slice(0, rows))
    settings = ContrastiveSettings((("other_positives",),), temperature=0.05)
    return contrastive_loss(similarities, [{"other_positives": other}], settings) / rows


class LookUp(nn.Module):
    """Stands where the reference expects a model: gives the embeddings it is handed."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return dict(features)

    def get_embedding_dimension(self) -> int:
        return SIZE


def test_value_is_the_mean_of_the_sizes_of_sentence_transformers() -> None:
    query, document = vectors(5, 0), vectors(5, 1)
    model: Any = LookUp()
    reference = MatryoshkaLoss(
        model, MultipleNegativesRankingLoss(model, scale=20.0), [SIZE, 8, 4], [1 / 3] * 3
    )
    features = [{"sentence_embedding": query}, {"sentence_embedding": document}]
    expected = reference(features, torch.empty(0))
    sizes = matryoshka_sizes(SIZE, [4, 8])
    got = matryoshka_mean(in_batch, unit_prefixes(torch.cat([query, document]), sizes))
    torch.testing.assert_close(got, expected)


def test_weights_of_sizes_are_those_of_sentence_transformers_over_the_number_of_sizes() -> None:
    query, document = vectors(5, 0), vectors(5, 1)
    model: Any = LookUp()
    inner = MultipleNegativesRankingLoss(model, scale=20.0)
    reference = MatryoshkaLoss(model, inner, [SIZE, 8, 4], [1.0, 0.25, 2.0])
    features = [{"sentence_embedding": query}, {"sentence_embedding": document}]
    expected = reference(features, torch.empty(0)) / 3
    prefixes = unit_prefixes(torch.cat([query, document]), [SIZE, 8, 4])
    got = matryoshka_mean(in_batch, prefixes, {8: 0.25, 4: 2.0})
    torch.testing.assert_close(got, expected)


def test_a_weight_of_a_size_that_is_not_trained_is_refused() -> None:
    check_weights({16: 2.0, 8: 0.5}, [16, 8])
    with pytest.raises(ValueError, match=r"names the sizes \[4\], but trained are \[16, 8\]"):
        check_weights({4: 2.0, 8: 0.5}, [16, 8])


def test_every_prefix_is_scaled_to_unit_norm() -> None:
    prefixes = unit_prefixes(vectors(6, 2), [16, 8, 2])
    assert [(size, len(prefix.T)) for size, prefix in prefixes.items()] == [
        (16, 16),
        (8, 8),
        (2, 2),
    ]
    for prefix in prefixes.values():
        assert (prefix.norm(dim=-1) - 1).abs().max().item() < 1e-6


def test_value_is_the_mean_written_in_numpy() -> None:
    query, document = vectors(4, 4), vectors(4, 5)
    values = []
    for size in (16, 8):
        q, d = query.double().numpy()[:, :size], document.double().numpy()[:, :size]
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        d = d / np.linalg.norm(d, axis=1, keepdims=True)
        weights = np.exp(q @ d.T / 0.05)
        values.append(-np.log(np.diag(weights) / weights.sum(axis=1)).mean())
    prefixes = unit_prefixes(torch.cat([query, document]), [16, 8])
    got = matryoshka_mean(in_batch, prefixes).item()
    assert got == pytest.approx(np.mean(values), rel=1e-5)


def test_sizes_are_unique_and_hold_the_full_one() -> None:
    assert matryoshka_sizes(64, [32, 64, 32]) == [64, 32]
    assert matryoshka_sizes(64, []) == [64]


def test_a_size_above_the_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="128 exceeds the embedding size 64"):
        matryoshka_sizes(64, [128])
