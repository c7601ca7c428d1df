"""CoSENT against the double sum in float64 and against sentence-transformers."""

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch import Tensor, nn

from model.losses.cosent import cosent


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=-1)


def plain_cosent(query: Tensor, document: Tensor, score: list[float], temperature: float) -> float:
    cosines = (query.double() * document.double()).sum(-1).tolist()
    total = 1.0
    for i, high in enumerate(score):
        for j, low in enumerate(score):
            if high > low:
                total += math.exp((cosines[j] - cosines[i]) / temperature)
    return math.log(total)


SCORES = [0.0, 0.2, 0.2, 1.0, 0.6, 0.6, 0.6]


@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
def test_value_is_the_double_sum(temperature: float) -> None:
    query, document = vectors(7, 0), vectors(7, 1)
    got = cosent(query, document, torch.tensor(SCORES), temperature).item()
    assert got == pytest.approx(plain_cosent(query, document, SCORES, temperature), rel=1e-5)


def test_value_is_the_one_of_sentence_transformers() -> None:
    query, document = vectors(7, 2), vectors(7, 3)
    reference = CoSENTLoss(nn.Module(), scale=20.0)  # pyright: ignore[reportArgumentType]  # embeddings are given, the model is not called
    expected = reference.compute_loss_from_embeddings([query, document], torch.tensor(SCORES))
    torch.testing.assert_close(cosent(query, document, torch.tensor(SCORES), 0.05), expected)


def test_equal_grades_give_nothing_to_learn() -> None:
    query, document = vectors(3, 4).requires_grad_(), vectors(3, 5)
    loss = cosent(query, document, torch.full((3,), 0.5), 0.05)
    loss.backward()
    assert loss.item() == 0.0
    assert query.grad is not None
    assert query.grad.abs().max().item() == 0.0


def test_right_order_costs_less_than_wrong_order() -> None:
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    document = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right = cosent(query, document, torch.tensor([1.0, 0.0]), 0.05)
    wrong = cosent(query, document, torch.tensor([0.0, 1.0]), 0.05)
    assert right.item() < 1e-6
    assert wrong.item() == pytest.approx(20.0, rel=1e-6)
