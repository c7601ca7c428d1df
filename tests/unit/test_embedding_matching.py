"""Embedding matching against torch in float64, and the sizes that can be matched."""

import pytest
import torch
import torch.nn.functional as F

from model.losses.embedding_matching import check_sizes, embedding_matching


def test_value_is_size_times_the_mean_squared_error_and_twice_the_cosine_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 12, generator=generator) for _ in range(2))
    got = embedding_matching(student, teacher)
    exact = [F.normalize(each.double(), dim=-1) for each in (student, teacher)]
    torch.testing.assert_close(got, (12 * 5 * F.mse_loss(*exact)).float())
    distance = 2 * (1 - F.cosine_similarity(student.double(), teacher.double()))
    torch.testing.assert_close(got, distance.sum().float())


def test_equal_directions_cost_nothing() -> None:
    vectors = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    assert embedding_matching(3 * vectors, vectors).item() == pytest.approx(0.0, abs=1e-6)


def test_equal_sizes_and_prefixes_of_either_can_be_matched() -> None:
    check_sizes(64, [64, 32], teacher_size=64)
    check_sizes(64, [64, 32], teacher_size=128)
    check_sizes(32, [64, 32], teacher_size=32)


def test_a_size_the_student_is_not_trained_at_is_refused() -> None:
    with pytest.raises(ValueError, match="size 48, but the student is trained at 64, 32: add 48"):
        check_sizes(48, [64, 32], teacher_size=48)


def test_a_size_above_the_teachers_is_refused() -> None:
    with pytest.raises(ValueError, match="size 64, but have 32 numbers"):
        check_sizes(64, [64, 32], teacher_size=32)
