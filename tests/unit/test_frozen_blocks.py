"""Frozen blocks: the training without them, states on disk, kills, and decoders that refuse."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.encoder.encoder import Encoder
from model.encoder.pooling.build import LatentSize, PoolingSettings
from model.training import trainer
from model.training.data import recorded_states
from model.training.data.recorded_states import RecordedStates
from model.training.settings import TrainingSource, TrainSettings
from model.training.step_log import StepRecord, read_records
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS, assert_same_weights, source_of, weights_of

FROZEN = dataclasses.replace(SETTINGS, frozen_blocks=1, batches="mixed")
TEXTS = [[1, 2, 3], [4], [1, 2, 3], [5, 70000]]


class StoppedError(Exception):
    """Somebody pulled the plug."""


def train_by(
    model: Path, texts: list[str], folder: Path, settings: TrainSettings, **rest: Any
) -> tuple[Encoder, list[float]]:
    encoder = rest.pop("encoder", None) or Encoder.load(model)
    sources: list[TrainingSource] = [
        source_of(texts, [0, 1, 2, 3] * 5),
        source_of(texts, [0] * 9, name="grades", task="sts"),
    ]
    train(
        encoder,
        sources,
        checkpoint_folder=folder / "checkpoint",
        log_path=folder / "training.jsonl",
        settings=settings,
        **rest,
    )
    return encoder, [record.loss for record in read_records(folder / "training.jsonl")]


def test_a_training_is_that_of_weights_which_need_no_gradient(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    reference = Encoder.load(pico_folder)
    reference.backbone.get_input_embeddings().requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue]
    reference.backbone.layers[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue, reportCallIssue]
    plain = dataclasses.replace(FROZEN, frozen_blocks=0)
    before = weights_of(reference)
    _, expected = train_by(pico_folder, pico_texts, tmp_path / "a", plain, encoder=reference)
    encoder, losses = train_by(pico_folder, pico_texts, tmp_path / "b", FROZEN)
    assert losses == pytest.approx(expected, rel=1e-3)
    # states in float16 turn single steps of Adam where a gradient is next to nothing, not the way
    ways = [
        torch.cat([(one.state_dict()[name] - tensor).flatten() for name, tensor in before.items()])
        for one in (reference, encoder)
    ]
    assert torch.nn.functional.cosine_similarity(*ways, dim=0) > 0.999
    changed = {
        name for name, tensor in encoder.state_dict().items() if (tensor != before[name]).any()
    }
    assert any("layers.1." in name for name in changed)
    assert not any("layers.0." in name or "embed" in name for name in changed)


def test_a_killed_one_goes_on_to_the_same_bytes(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_states, "BLOCK_TEXTS", 5)
    whole, losses = train_by(pico_folder, pico_texts, tmp_path / "whole", FROZEN)

    append, asked = RecordedStates.append, []

    def append_or_stop(self: RecordedStates, state_NH: np.ndarray) -> None:
        asked.append(len(state_NH))
        if len(asked) == 4:
            raise StoppedError
        append(self, state_NH)

    monkeypatch.setattr(RecordedStates, "append", append_or_stop)
    with pytest.raises(StoppedError):
        train_by(pico_folder, pico_texts, tmp_path / "cut", FROZEN)
    # the write of a block was cut off in the middle
    with (tmp_path / "cut/checkpoint/states/states.bin").open("ab") as stream:
        stream.write(b"xyz")

    def stop(record: StepRecord) -> None:
        if record.step == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_by(pico_folder, pico_texts, tmp_path / "cut", FROZEN, on_step=stop)
    blocks = len(asked)
    cut, cut_losses = train_by(pico_folder, pico_texts, tmp_path / "cut", FROZEN)
    assert len(asked) == blocks, "states on the disk are not computed again"
    assert cut_losses == losses
    assert_same_weights(weights_of(cut), weights_of(whole))


@pytest.mark.parametrize("size", [1.0, 3e4, 1e6, 1e-3])
def test_states_come_back_with_the_precision_of_float16(size: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    states = RecordedStates(tmp_path / "states", TEXTS, 8)
    given = (rng.normal(size=(6, 8)) * size).astype(np.float32)
    given[2] = 0.0
    assert list(states.missing()) == [[[1, 2, 3], [4], [5, 70000]]]
    states.append(given)
    assert list(states.missing()) == []
    assert states.places([5, 70000]) == range(4, 6)
    found = states.rows(np.array([[5, 0], [2, 3]]))
    assert found.dtype == np.float32
    limit = 2.0**-11 * np.abs(given).max(axis=1)[[[5, 0], [2, 3]]][..., None]
    assert (np.abs(found - given[[[5, 0], [2, 3]]]) <= limit).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_states_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    states = RecordedStates(tmp_path / "states", TEXTS, 8)
    given = np.ones((6, 8), dtype=np.float32)
    given[3, 2] = bad
    with pytest.raises(ValueError, match="no numbers"):
        states.append(given)
    assert list(states.missing()), "nothing counts as written"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen_blocks": 3}, "frozen_blocks is 3, but the decoder has 3 blocks"),
        ({"frozen_blocks": 5}, "set frozen_blocks below 3"),
    ],
)
def test_one_block_at_least_is_trained(
    settings: dict[str, Any], message: str, pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_by(pico_folder, pico_texts, tmp_path, dataclasses.replace(SETTINGS, **settings))


def test_a_pooling_that_reads_all_blocks_is_refused(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    plain = Encoder.load(pico_folder)
    size = LatentSize(num_latents=8, num_heads=4, head_dim=8, expansion=2)
    pooling = PoolingSettings(kind="multilayer", latent=size, layer_tokens="mean")
    encoder = Encoder(plain.backbone, plain.tokenizer, pooling, max_length_tokens=48).float()
    with pytest.raises(ValueError, match="multilayer"):
        train_by(pico_folder, pico_texts, tmp_path, FROZEN, encoder=encoder)


def test_a_decoder_that_does_not_lay_texts_end_to_end_is_refused(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    encoder = Encoder.load(pico_folder, attn_implementation="eager")
    with pytest.raises(ValueError, match="attn_implementation to sdpa"):
        train_by(pico_folder, pico_texts, tmp_path, FROZEN, encoder=encoder)


def test_a_decoder_whose_blocks_need_the_lower_ones_to_run_is_found_out(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    encoder = Encoder.load(pico_folder)
    first = encoder.backbone.layers[0]  # pyright: ignore[reportIndexIssue, reportCallIssue]
    # a decoder whose later blocks read what an earlier one left behind
    encoder.backbone.register_forward_pre_hook(lambda *_: setattr(first, "ran", False))
    first.register_forward_pre_hook(lambda *_: setattr(first, "ran", True))
    encoder.backbone.layers[1].register_forward_hook(  # pyright: ignore[reportIndexIssue, reportCallIssue]
        lambda _, __, output: output if getattr(first, "ran", False) else -output
    )
    with pytest.raises(ValueError, match="cannot be cut above its block 1"):
        train_by(pico_folder, pico_texts, tmp_path, FROZEN, encoder=encoder)


def test_a_team_is_refused(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = SimpleNamespace(size=2, leads=True, rank=0)
    monkeypatch.setattr(trainer, "Team", lambda **_: team)
    with pytest.raises(ValueError, match=r"2 processes train: .*compute\.processes to 1"):
        train_by(pico_folder, pico_texts, tmp_path, FROZEN)
