"""The divergence from a teacher against torch in float64 and sentence-transformers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch import Tensor, nn

from model.losses.divergence import divergence

STUDENT, TEACHER = 0.05, 0.1


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_value_and_gradient_are_those_of_torch_in_float64() -> None:
    student, teacher = normal(5, 4, seed=0).requires_grad_(), normal(5, 4, seed=1)
    counts = normal(5, 4, seed=2) > -0.5
    counts[:, 0] = True
    got = divergence(student, teacher, counts)
    got.backward()
    exact = student.detach().double().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(5):
        kept = counts[row]
        expected = expected + F.kl_div(
            exact[row, kept].log_softmax(0),
            teacher[row, kept].double().log_softmax(0),
            reduction="sum",
            log_target=True,
        )
    expected.backward()
    assert exact.grad is not None
    torch.testing.assert_close(got, expected.float())
    torch.testing.assert_close(student.grad, exact.grad.float(), rtol=1e-5, atol=1e-6)


def test_value_is_that_of_sentence_transformers_without_its_square_of_the_temperature() -> None:
    query, *documents = (F.normalize(normal(6, 8, seed=seed), dim=-1) for seed in range(4))
    scores = torch.stack([(query * document).sum(-1) for document in documents], dim=1)
    teacher = 0.5 + 0.3 * normal(6, 3, seed=9)
    model: Any = nn.Module()  # embeddings are given, the model is not called
    reference = DistillKLDivLoss(model, student_temperature=STUDENT, teacher_temperature=TEACHER)
    expected = reference.compute_loss_from_embeddings([query, *documents], teacher).item()
    everything = torch.ones_like(scores, dtype=torch.bool)
    got = divergence(scores / STUDENT, teacher / TEACHER, everything).item() / 6
    assert got * STUDENT**2 == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_and_a_row_of_one_candidate_add_nothing() -> None:
    scores = normal(3, 4, seed=3)
    counts = torch.ones(3, 4, dtype=torch.bool)
    assert divergence(scores, scores + 7.0, counts).item() == pytest.approx(0.0, abs=1e-6)
    counts[:, 1:] = False
    one = scores.clone().requires_grad_()
    loss = divergence(one, normal(3, 4, seed=4), counts)
    loss.backward()
    assert loss.item() == 0.0
    assert one.grad is not None
    assert not one.grad.any(), "a masked candidate must not leave NaN in the gradient"
