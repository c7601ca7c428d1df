"""Compiled blocks: the same steps as plain ones, where there is a C++ compiler."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from model.encoder import Encoder
from model.training.step_log import read_records
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS, source_of, weights_of

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch.compile IS NOT TESTED"),
    pytest.mark.filterwarnings("ignore"),  # of torch's own compiler
]


def test_a_training_takes_the_same_steps(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """With checkpointed activations, whose second pass is compiled as well."""
    results = []
    for is_on in (False, True):
        settings = dataclasses.replace(
            SETTINGS,
            max_steps=4,
            activation_checkpointing=is_on,
            compile_blocks=is_on,
        )
        encoder, folder = Encoder.load(pico_folder), tmp_path / str(is_on)
        train(
            encoder,
            [source_of(pico_texts, [0, 1, 2, 3] * 5)],
            checkpoint_folder=folder / "checkpoint",
            log_path=folder / "training.jsonl",
            settings=settings,
        )
        losses = [record.loss for record in read_records(folder / "training.jsonl")]
        results.append((losses, weights_of(encoder)))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert results[0][1].keys() == results[1][1].keys()
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
