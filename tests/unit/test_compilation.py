"""Compiled blocks: the same steps as plain ones, where there is a C++ compiler."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from model.backbone import scratch
from model.backbone.scratch import new_decoder, train_decoder
from model.encoder import compilation
from model.encoder.compilation import has_compiler
from model.encoder.encoder import Encoder
from model.encoder.tokenization import TokenizedText
from model.training.devices.team import Team
from model.training.devices.wrapping import wrapped_for_training
from model.training.step_log import StepRecord
from tasks.machine.compute import use_compute
from tasks.params.load import load_params
from tests.unit import test_scratch
from tests.unit.test_trainer import (
    SETTINGS,
    PowerCutError,
    assert_same_steps,
    assert_same_weights,
    run,
    source_of,
    weights_of,
)
from tests.unit.training_workspace import PROFILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_compiler(), reason="no g++: torch.compile IS NOT TESTED"),
    pytest.mark.filterwarnings("ignore"),  # of torch's own compiler
]


def test_a_training_takes_the_same_steps(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """With checkpointed activations, whose second pass is compiled as well."""
    plain = dataclasses.replace(SETTINGS, max_steps=4)
    compiled = dataclasses.replace(plain, activation_checkpointing=True, compile_blocks=True)
    assert_same_steps(pico_folder, pico_texts, tmp_path, plain, compiled)


def test_a_training_that_goes_on_runs_the_same_kernels(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """Compiled anew, as in another process, before a batch of another size."""
    settings = dataclasses.replace(SETTINGS, max_steps=8, compile_blocks=True)
    sources = [source_of(pico_texts, [0, 1, 2, 3] * 5)]

    def cut(record: StepRecord) -> None:
        if record.step == 5:
            raise PowerCutError

    def train(name: str, **options: Any) -> Encoder:
        torch.compiler.reset()
        encoder = Encoder.load(pico_folder)
        run(encoder, sources, tmp_path / name, settings, **options)
        return encoder

    with pytest.raises(PowerCutError):
        train("cut", on_step=cut)
    assert_same_weights(weights_of(train("cut")), weights_of(train("whole")))


def test_what_is_compiled_first_fits_batches_of_any_size(pico_folder: Path) -> None:
    settings = dataclasses.replace(SETTINGS, micro_batch_tokens=16384, compile_blocks=True)
    torch.compiler.reset()
    with wrapped_for_training(Encoder.load(pico_folder), settings, Team()) as encoder:
        before = counters["stats"]["unique_graphs"]
        for texts in (1, 3, 17, 40, 75, 130, 300, 600):
            items = [TokenizedText(list(range(5, 21)), 0)] * texts
            encoder.embed(items).square().sum().backward()
        assert counters["stats"]["unique_graphs"] == before > 0


def test_without_a_compiler_blocks_stay_as_they_are_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute = load_params(PROFILE).compute
    wanted = compute.model_copy(update={"compile_blocks": True, "device": "cpu"})
    assert use_compute(wanted).compile_blocks
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not use_compute(wanted).compile_blocks
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda _: "no-such-folder")
    assert not use_compute(wanted).compile_blocks
    assert caplog.text.count("there is no g++ (nor what CXX names) or no Python.h") == 2


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
