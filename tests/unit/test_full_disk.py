"""A disk that is full: the file is named, nothing half-written is taken for whole."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from model.checkpoint import load_latest, save_checkpoint
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import LatentSize, PoolingSettings
from model.writing import writing
from tasks.contract.records import write_table
from tests.unit.file_limit import files_up_to
from tests.unit.training_workspace import set_processes, start_pretrain, write_workspace


def outputs(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def unbroken(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training of 60 steps writes on a disk with room."""
    folder = tmp_path_factory.mktemp("unbroken")
    return outputs_of_training(folder, pico_folder)


def outputs_of_training(folder: Path, model: Path) -> dict[str, bytes]:
    make_workspace(folder, model)
    with start_pretrain(folder) as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return outputs(folder / "artifacts" / "pretrain")


def make_workspace(folder: Path, model: Path) -> None:
    write_workspace(folder, model, max_steps=60, checkpoint_every_steps=45)
    set_processes(folder, 1)


@pytest.mark.parametrize(
    ("size_bytes", "file"),
    [
        (2_000, r"corpora/\S+\.arrow"),
        (12_000, r"checkpoints/\S+/training\.jsonl"),
        (100_000, r"checkpoints/\S+/tensors\.safetensors"),
    ],
)
@pytest.mark.slow
def test_a_training_names_the_file_and_goes_on_when_there_is_room(
    size_bytes: int, file: str, unbroken: dict[str, bytes], pico_folder: Path, tmp_path: Path
) -> None:
    make_workspace(tmp_path, pico_folder)
    with start_pretrain(tmp_path, size_bytes) as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1, log
    assert "Traceback" not in log
    message = rf"stage pretrain stopped: cannot write \.samovar/{file} \(.*disk"
    assert re.search(message, log), log
    assert not (tmp_path / "artifacts" / "pretrain").exists()
    assert not list(tmp_path.rglob(".partial-*"))
    with start_pretrain(tmp_path) as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert outputs(tmp_path / "artifacts" / "pretrain") == unbroken


@pytest.fixture
def latent_encoder(pico_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """The files of its folder, from the largest: pooling 280 kB, decoder 90 kB, tokenizer."""
    config = Qwen3Config(
        vocab_size=len(pico_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    latent = LatentSize(num_latents=2048, num_heads=2, head_dim=4, expansion=1)
    settings = PoolingSettings(kind="latent", latent=latent)
    return Encoder(Qwen3Model(config), pico_tokenizer, settings, max_length_tokens=64)


@pytest.mark.parametrize(
    ("size_bytes", "file"),
    [(50_000, "model.safetensors"), (200_000, "1_LatentPooling/model.safetensors")],
)
def test_a_model_folder_names_the_weights_that_do_not_fit(
    latent_encoder: Encoder, size_bytes: int, file: str, tmp_path: Path
) -> None:
    message = rf"cannot write {tmp_path}/{file} \(.*free space"
    with pytest.raises(OSError, match=message), files_up_to(size_bytes):
        latent_encoder.save(tmp_path)


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "samovar.json", "latent_pooling.py", "pooling_block.py"]
)
def test_a_model_folder_names_the_text_that_does_not_fit(
    latent_encoder: Encoder, file: str, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}/{file} \(.*free space"):
        latent_encoder.save(tmp_path)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, step=1, tensors={"a": torch.ones(10)}, state={})
    with (
        pytest.raises(OSError, match=r"cannot write .*tensors\.safetensors"),
        files_up_to(10_000),
    ):
        save_checkpoint(tmp_path, step=2, tensors={"a": torch.ones(10_000)}, state={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1


def test_a_table_names_the_shard_that_does_not_fit(tmp_path: Path) -> None:
    table = pa.table({"number": np.random.default_rng(0).random(10_000)})
    with (
        pytest.raises(OSError, match=r"cannot write .*part-00000\.parquet .*free space"),
        files_up_to(20_000),
    ):
        write_table(table, tmp_path / "table")
    assert not (tmp_path / "table" / "manifest.json").exists()


def test_errors_that_are_none_of_writing_pass_unchanged() -> None:
    with pytest.raises(ValueError, match=r"^loss$"), writing(Path("file")):
        raise ValueError("loss")
