"""Compiled blocks: the same steps as plain ones, where there is a C++ compiler."""

import dataclasses
import shutil
from pathlib import Path

import pytest

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
