"""InfoNCE against the equation in float64 and against sentence-transformers."""

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from model.losses.info_nce import info_nce


def unit_vectors(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, size, generator=generator), dim=-1)


def all_allowed(num_queries: int, num_documents: int) -> Tensor:
    return torch.ones(num_queries, num_documents, dtype=torch.bool)


def plain_info_nce(
    query: np.ndarray, document: np.ndarray, allowed: np.ndarray, temperature: float
) -> float:
    total = 0.0
    for i, vector in enumerate(query):
        weights = np.exp(document @ vector / temperature)
        total -= np.log(weights[i] / weights[allowed[i]].sum())
    return total / len(query)


@pytest.mark.parametrize("hard_negatives", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
def test_value_is_the_equation_in_float64(hard_negatives: int, temperature: float) -> None:
    query, document = unit_vectors(5, 16, 0), unit_vectors(5 * (1 + hard_negatives), 16, 1)
    allowed = torch.rand(5, len(document), generator=torch.Generator().manual_seed(2)) < 0.6
    allowed[range(5), range(5)] = True
    expected = plain_info_nce(
        query.double().numpy(), document.double().numpy(), allowed.numpy(), temperature
    )
    assert info_nce(query, document, allowed, temperature).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("hard_negatives", [0, 1, 3])
def test_value_without_masks_is_the_one_of_sentence_transformers(hard_negatives: int) -> None:
    query, document = unit_vectors(6, 16, 3), unit_vectors(6 * (1 + hard_negatives), 16, 4)
    reference = MultipleNegativesRankingLoss(nn.Module(), scale=20.0)  # pyright: ignore[reportArgumentType]  # embeddings are given, the model is not called
    expected = reference.compute_loss_from_embeddings(
        [query, *document.chunk(1 + hard_negatives)], torch.empty(0)
    )
    got = info_nce(query, document, all_allowed(6, len(document)), 0.05)
    torch.testing.assert_close(got, expected)


def test_a_query_without_negatives_adds_nothing() -> None:
    query, document = unit_vectors(2, 8, 5).requires_grad_(), unit_vectors(2, 8, 6)
    loss = info_nce(query, document, torch.eye(2, dtype=torch.bool), 0.05)
    loss.backward()
    assert loss.item() == 0.0
    assert query.grad is not None
    assert query.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


def test_masked_documents_get_no_gradient() -> None:
    query, document = unit_vectors(3, 8, 7), unit_vectors(4, 8, 8).requires_grad_()
    allowed = all_allowed(3, 4)
    allowed[:, 3] = False
    info_nce(query, document, allowed, 0.05).backward()
    assert document.grad is not None
    assert document.grad[3].abs().max().item() == 0.0
    assert document.grad[:3].abs().min(dim=1).values.max().item() > 0.0


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    """A bfloat16 product over a temperature of 0.01 would be off by tenths of a nat."""
    query, document = unit_vectors(8, 64, 9).bfloat16(), unit_vectors(8, 64, 10).bfloat16()
    got = info_nce(query, document, all_allowed(8, 8), 0.01)
    expected = info_nce(query.float(), document.float(), all_allowed(8, 8), 0.01)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_a_perfect_answer_costs_nothing_and_the_worst_costs_two_over_the_temperature() -> None:
    query = torch.tensor([[1.0, 0.0]])
    document = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert info_nce(query, document, all_allowed(1, 2), 0.05).item() == pytest.approx(0.0, abs=1e-6)
    worst = info_nce(query, document.flip(0), all_allowed(1, 2), 0.05).item()
    assert worst == pytest.approx(2 / 0.05, rel=1e-6)
