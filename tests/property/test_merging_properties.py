"""Laws of mining and merging that hold for any input."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from model.merging.self_positioning import fold
from model.merging.slerp import slerp_factors
from model.mining import positive_cap, top_k

FEW = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.0, 1.0)


def vector(seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


def slerp(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    left, right = slerp_factors(*(torch.tensor(v, dtype=torch.float64) for v in (cosine, t)))
    return float(left) * first + float(right) * second


@FEW
@given(seeds, seeds)
def test_slerp_starts_at_the_first_vector_and_ends_at_the_second(one: int, other: int):
    first, second = vector(one), vector(other)
    assert np.allclose(slerp(first, second, 0.0), first)
    assert np.allclose(slerp(first, second, 1.0), second)


@FEW
@given(seeds, seeds, shares)
def test_slerp_keeps_the_norm_of_vectors_of_equal_norm(one: int, other: int, t: float):
    first, second = (vector(seed) for seed in (one, other))
    second = second / np.linalg.norm(second) * np.linalg.norm(first)
    assert math.isclose(
        np.linalg.norm(slerp(first, second, t)), np.linalg.norm(first), rel_tol=2e-4
    )


@FEW
@given(seeds, seeds, shares)
def test_slerp_from_the_other_end_is_the_same_point(one: int, other: int, t: float):
    first, second = vector(one), vector(other)
    assert np.allclose(slerp(first, second, t), slerp(second, first, 1 - t))


@FEW
@given(st.lists(seeds, min_size=2, max_size=5, unique=True), st.floats(0.1, 10.0))
def test_the_fold_depends_on_ratios_of_the_weights_alone(numbers: list[int], scale: float):
    vectors = torch.from_numpy(np.stack([vector(number) for number in numbers]))
    gram = vectors @ vectors.T
    weights = torch.linspace(0.5, 2.0, len(numbers), dtype=torch.float64)
    assert torch.allclose(fold(gram, weights), fold(gram, scale * weights))


@FEW
@given(seeds, st.integers(2, 5))
def test_the_fold_of_equal_vectors_is_that_vector(seed: int, count: int):
    vectors = torch.from_numpy(np.stack([vector(seed)] * count))
    weights = torch.linspace(0.5, 2.0, count, dtype=torch.float64)
    merged = fold(vectors @ vectors.T, weights) @ vectors
    assert torch.allclose(merged, vectors[0])


@FEW
@given(seeds, st.integers(1, 2**18), st.integers(1, 40), st.booleans())
def test_the_size_of_tiles_does_not_change_what_is_found(
    seed: int, tile_bytes: int, k: int, repeats: bool
):
    generator = torch.Generator().manual_seed(seed)
    query = normalize(torch.randn(7, 6, generator=generator), dim=1)
    document = normalize(torch.randn(90, 6, generator=generator), dim=1)
    if repeats:
        document = document[torch.randint(0, 5, (90,), generator=generator)]
    expected_score, expected_index = top_k(query, document, k)
    score, index = top_k(query, document, k, tile_bytes=tile_bytes)
    assert torch.equal(score, expected_score)
    assert torch.equal(index, expected_index)


@FEW
@given(st.floats(-1.0, 1.0), st.floats(0.5, 0.999))
def test_the_cap_never_lies_above_the_positive(score: float, share: float):
    tensor = torch.tensor([score], dtype=torch.float64)
    assert float(positive_cap(tensor, share)) <= score
