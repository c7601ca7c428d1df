"""Compiled blocks: the same steps as plain ones, where there is a C++ compiler."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from model import scratch
from model.scratch import new_decoder, train_decoder
from tests.unit import test_scratch
from tests.unit.test_trainer import SETTINGS, assert_same_steps

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch.compile IS NOT TESTED"),
    pytest.mark.filterwarnings("ignore"),  # of torch's own compiler
]


def test_a_training_takes_the_same_steps(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """With checkpointed activations, whose second pass is compiled as well."""
    plain = dataclasses.replace(SETTINGS, max_steps=4)
    compiled = dataclasses.replace(plain, activation_checkpointing=True, compile_blocks=True)
    assert_same_steps(pico_folder, pico_texts, tmp_path, plain, compiled)


def test_a_language_model_takes_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by the compiler; what its kernels compute, the test above shows."""
    monkeypatch.setattr(
        scratch,
        "compile_blocks",
        lambda decoder: [b.compile(dynamic=True, backend="aot_eager") for b in decoder.layers],
    )
    sequences = np.random.default_rng(0).integers(0, 300, (16, 16)).astype(np.int32)
    curves = []
    for is_compiled in (False, True):
        settings = dataclasses.replace(
            test_scratch.SETTINGS, precision="fp32", max_steps=4, compile_blocks=is_compiled
        )
        decoder, curve = train_decoder(
            new_decoder(test_scratch.SIZE, 300, seed=5),
            sequences,
            settings,
            checkpoint_folder=tmp_path / str(is_compiled),
            checkpoint_interval_s=1e9,
        )
        assert all((b._compiled_call_impl is not None) == is_compiled for b in decoder.layers)  # pyright: ignore[reportGeneralTypeIssues]  # a list of blocks
        curves.append([point.loss for point in curve])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert len(set(curves[0])) == 4  # the weights moved
