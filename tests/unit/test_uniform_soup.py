"""Soups and the folders that merges read and write."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.encoder.encoder import Encoder
from model.merging.uniform_soup import uniform_soup
from model.merging.weights import SavedWeights, require_alike, write_merged


def folder_of(path: Path, tensors: dict[str, torch.Tensor]) -> SavedWeights:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return SavedWeights(path)


def test_a_soup_is_the_mean_of_its_models(tmp_path: Path):
    values = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.tensor([5.0, 11.0])]
    models = [folder_of(tmp_path / str(n), {"w": value}) for n, value in enumerate(values)]
    assert uniform_soup(models)("w").tolist() == [3.0, 6.0]


def test_a_weighted_soup_is_the_weighted_mean_whatever_the_sum(tmp_path: Path):
    models = [folder_of(tmp_path / str(n), {"w": torch.tensor([float(n)])}) for n in range(3)]
    assert uniform_soup(models, [2, 0, 6])("w").tolist() == [1.5]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_impossible_weights_are_refused(tmp_path: Path, weights):
    models = [folder_of(tmp_path / str(n), {"w": torch.ones(1)}) for n in range(2)]
    with pytest.raises(ValueError, match="needs as many weights, none negative"):
        uniform_soup(models, weights)


def test_an_empty_soup_is_refused():
    with pytest.raises(ValueError, match="at least one model"):
        uniform_soup([])


def test_the_soup_of_equal_encoders_is_that_encoder_byte_for_byte(
    pico_folder: Path, tmp_path: Path
):
    write_merged(pico_folder, tmp_path / "soup", uniform_soup([SavedWeights(pico_folder)] * 3))
    files = sorted(path.relative_to(pico_folder) for path in pico_folder.rglob("*"))
    assert files == sorted(
        path.relative_to(tmp_path / "soup") for path in (tmp_path / "soup").rglob("*")
    )
    for name in files:
        if (pico_folder / name).is_file():
            assert (pico_folder / name).read_bytes() == (tmp_path / "soup" / name).read_bytes()


def test_a_merged_folder_loads_as_an_encoder_with_the_mean_weights(
    pico_folder: Path, pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
):
    other = Encoder.load(pico_folder)
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.add_(0.1)
    other.save(tmp_path / "other")
    folders = [pico_folder, tmp_path / "other"]
    write_merged(pico_folder, tmp_path / "soup", uniform_soup([SavedWeights(f) for f in folders]))
    with torch.no_grad():
        for parameter in pico_encoder.backbone.parameters():
            parameter.add_(0.05)
    expected = pico_encoder.encode(pico_texts, batch_tokens=1000)
    merged = Encoder.load(tmp_path / "soup").encode(pico_texts, batch_tokens=1000)
    assert np.abs(merged - expected).max() < 1e-6


def test_values_are_written_in_the_type_of_the_template(tmp_path: Path):
    half = folder_of(tmp_path / "half", {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)})
    write_merged(half.folder, tmp_path / "out", lambda _: torch.tensor([1.5, 3.0]))
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [1.5, 3.0]
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].dtype == torch.bfloat16


def test_a_read_only_template_gives_a_writable_merge(tmp_path: Path):
    """DVC links files from its cache, read-only."""
    model = folder_of(tmp_path / "model", {"w": torch.ones(2)})
    os.chmod(tmp_path / "model" / "model.safetensors", 0o444)  # noqa: PTH101
    write_merged(model.folder, tmp_path / "out", uniform_soup([model]))
    assert os.access(tmp_path / "out" / "model.safetensors", os.W_OK)


def test_tensors_are_found_in_whatever_shard_they_lie(tmp_path: Path):
    whole = folder_of(tmp_path / "whole", {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})
    folder_of(tmp_path / "split", {"a": torch.tensor([3.0])})
    save_file({"b": torch.tensor([6.0])}, tmp_path / "split" / "model-2.safetensors")
    soup = uniform_soup([whole, SavedWeights(tmp_path / "split")])
    assert [soup("a").item(), soup("b").item()] == [2.0, 4.0]


def test_tensors_of_subfolders_are_merged_under_their_own_names(tmp_path: Path):
    for number in range(2):
        folder = tmp_path / str(number)
        folder_of(folder, {"w": torch.tensor([float(number)])})
        (folder / "1_LatentPooling").mkdir()
        save_file(
            {"w": torch.tensor([10.0 * number])}, folder / "1_LatentPooling/model.safetensors"
        )
    models = [SavedWeights(tmp_path / "0"), SavedWeights(tmp_path / "1")]
    write_merged(tmp_path / "0", tmp_path / "out", uniform_soup(models))
    assert load_file(tmp_path / "out/1_LatentPooling/model.safetensors")["w"].tolist() == [5.0]
    assert load_file(tmp_path / "out/model.safetensors")["w"].tolist() == [0.5]


def test_a_tensor_in_one_model_only_is_named(tmp_path: Path):
    """A tied head that one export wrote and the other did not must not be dropped in silence."""
    left = folder_of(tmp_path / "left", {"w": torch.ones(1), "head": torch.ones(1)})
    right = folder_of(tmp_path / "right", {"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"tensor head is in .*left but not in .*right"):
        require_alike([right, left])


def test_a_tensor_of_another_shape_is_named(tmp_path: Path):
    left = folder_of(tmp_path / "left", {"w": torch.ones(2, 3)})
    right = folder_of(tmp_path / "right", {"w": torch.ones(3, 2)})
    with pytest.raises(ValueError, match=r"tensor w has shape \[2, 3\] in .*left but \[3, 2\]"):
        require_alike([left, right])


def test_integer_tensors_must_agree(tmp_path: Path):
    left = folder_of(tmp_path / "left", {"ids": torch.tensor([1, 2])})
    right = folder_of(tmp_path / "right", {"ids": torch.tensor([1, 3])})
    with pytest.raises(ValueError, match="tensor ids, which is no floating-point one, differs"):
        require_alike([left, right])


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no safetensors file"):
        SavedWeights(tmp_path)


def test_a_truncated_file_is_named(pico_folder: Path, tmp_path: Path):
    shutil.copytree(pico_folder, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 1000)
    with pytest.raises(ValueError, match=r"cut/model.safetensors is no safetensors file"):
        SavedWeights(tmp_path / "cut")
