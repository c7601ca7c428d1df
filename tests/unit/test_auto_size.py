"""The largest micro-batch that fits: found by doubling, kept by machine and model, agreed on."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.encoder.encoder import Encoder
from model.training.devices.auto_size import (
    CPU_TOKENS,
    _key,
    largest_fitting,
    remembered,
    try_size,
    with_fitting_micro_batches,
)
from model.training.devices.team import Team
from model.training.settings import MemorySettings
from tests.unit.test_trainer import SETTINGS, weights_of, with_memory_for


@pytest.mark.parametrize(
    ("room", "most", "expected"),
    [(1000, 10**6, 512), (1024, 10**6, 1024), (10**6, 3000, 4096), (5, 10**6, 256)],
)
def test_tokens_are_doubled_until_they_do_not_fit(room: int, most: int, expected: int) -> None:
    """Or until a whole batch fits; the smallest size is the answer where nothing does."""

    def attempt(tokens: int) -> None:
        if tokens > room:
            raise torch.OutOfMemoryError("simulated")

    assert largest_fitting(attempt, most) == expected


def test_an_attempt_takes_both_passes_and_leaves_nothing(
    pico_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = with_memory_for(pico_encoder, 1100, monkeypatch)
    before = weights_of(small)
    found = largest_fitting(lambda tokens: try_size(small, SETTINGS, tokens), 10**6)
    assert found == 1024
    assert all(p.grad is None for p in small.parameters())
    for name, tensor in before.items():
        assert torch.equal(tensor, small.state_dict()[name]), name


def test_what_was_found_is_not_looked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "sizes.json"
    assert remembered(file, "card, model", lambda: 2048, Team()) == 2048
    assert remembered(file, "other card, model", lambda: 512, Team()) == 512
    assert remembered(file, "card, model", lambda: 1 // 0, Team()) == 2048
    assert json.loads(file.read_text()) == {"card, model": 2048, "other card, model": 512}


def test_a_processor_is_not_tried(pico_encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    memory = MemorySettings(batches=1, from_step=1)
    settings = dataclasses.replace(SETTINGS, micro_batch_tokens=7, memory=memory)
    found = with_fitting_micro_batches(pico_encoder, settings, file, Team())
    assert found == dataclasses.replace(settings, micro_batch_tokens=CPU_TOKENS)
    assert not file.exists()


def test_what_a_small_batch_found_is_no_limit_for_a_larger_one(
    pico_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes beyond a batch are not tried; batches that end at the same size share an answer."""
    card = SimpleNamespace(name="card", total_memory=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    small, same, large = (_key(pico_encoder, SETTINGS, most) for most in (900, 1000, 5000))
    assert small == same != large
