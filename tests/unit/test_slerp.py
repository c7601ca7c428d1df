"""Spherical interpolation against known angles."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.merging.slerp import LERP_COSINE, slerp_factors, slerp_task_vectors, slerp_weights
from model.merging.weights import SavedWeights


def checkpoint(path: Path, **tensors: list[float]) -> SavedWeights:
    path.mkdir()
    save_file(
        {name: torch.tensor(value) for name, value in tensors.items()}, path / "m.safetensors"
    )
    return SavedWeights(path)


def factors(cosine: float, t: float) -> tuple[float, float]:
    values = (torch.tensor(value, dtype=torch.float64) for value in (cosine, t))
    left, right = slerp_factors(*values)
    return float(left), float(right)


def test_a_third_of_a_right_angle_is_thirty_degrees():
    assert factors(0.0, 1 / 3) == pytest.approx((math.cos(math.pi / 6), math.sin(math.pi / 6)))


def test_a_quarter_of_120_degrees_lies_thirty_degrees_from_the_first():
    """Vectors at 0 and 120 degrees in the plane."""
    left, right = factors(-0.5, 0.25)
    x = left + right * math.cos(math.radians(120))
    y = right * math.sin(math.radians(120))
    assert (x, y) == pytest.approx((math.cos(math.radians(30)), math.sin(math.radians(30))))


@pytest.mark.parametrize("cosine", [LERP_COSINE + 1e-6, 1.0, -1.0])
def test_nearly_parallel_vectors_are_averaged_linearly(cosine: float):
    assert factors(cosine, 0.25) == (0.75, 0.25)


def test_the_arc_and_the_line_agree_where_one_takes_over_from_the_other():
    for t in (0.1, 0.5, 0.8):
        assert factors(LERP_COSINE - 1e-9, t) == pytest.approx((1 - t, t), abs=1e-4)


def test_raw_weights_are_turned_tensor_by_tensor_and_the_cosines_told(tmp_path: Path):
    first = checkpoint(tmp_path / "1", turned=[2.0, 0.0], same=[1.0, 1.0], zero=[0.0, 0.0])
    second = checkpoint(tmp_path / "2", turned=[0.0, 2.0], same=[3.0, 3.0], zero=[4.0, 0.0])
    merged, cosines = slerp_weights(first, second, 0.5)
    assert merged("turned").tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])
    assert merged("same").tolist() == pytest.approx([2.0, 2.0])
    assert merged("zero").tolist() == pytest.approx([2.0, 0.0])
    assert cosines == pytest.approx({"turned": 0.0, "same": 1.0, "zero": 1.0})


def test_task_vectors_share_one_angle_over_all_tensors(tmp_path: Path):
    """Per tensor these are parallel (a) and opposite (b); as one vector they are orthogonal."""
    base = checkpoint(tmp_path / "0", a=[10.0], b=[20.0])
    first = checkpoint(tmp_path / "1", a=[11.0], b=[21.0])
    second = checkpoint(tmp_path / "2", a=[11.0], b=[19.0])
    merged, cosine = slerp_task_vectors(base, first, second, 0.5)
    half = math.sin(math.pi / 4)
    assert cosine == pytest.approx(0.0)
    assert merged("a").tolist() == pytest.approx([10 + 2 * half])
    assert merged("b").tolist() == pytest.approx([20.0])


@pytest.mark.parametrize(("t", "number"), [(0.0, "1"), (1.0, "2")])
def test_the_ends_of_the_arc_are_the_models(tmp_path: Path, t: float, number: str):
    base = checkpoint(tmp_path / "0", a=[1.0, -1.0])
    models = {
        "1": checkpoint(tmp_path / "1", a=[2.0, 0.5]),
        "2": checkpoint(tmp_path / "2", a=[0.0, 3.0]),
    }
    merged, _ = slerp_task_vectors(base, models["1"], models["2"], t)
    assert merged("a").tolist() == pytest.approx(models[number].tensor("a").tolist(), abs=1e-6)


def test_a_model_equal_to_the_base_is_refused(tmp_path: Path):
    base = checkpoint(tmp_path / "0", a=[1.0])
    other = checkpoint(tmp_path / "1", a=[2.0])
    with pytest.raises(ValueError, match="nothing to merge"):
        slerp_task_vectors(base, other, base, 0.5)
