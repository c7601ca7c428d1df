"""What only a GPU can show of the locks: the names are the driver's, and CUDA heeds the choice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.machine.gpus.hold import list_gpus

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, NO GPU TEST RUNS"),
]

STAGE = """
import sys, torch
from tasks.machine.compute import use_compute
from tasks.params.load import load_params
use_compute(load_params("infra/profiles/pico.yaml").compute.model_copy(update={"device": "cuda"}))
print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid, flush=True)
sys.stdin.read()
"""


def shown_to_this_process() -> list[str]:
    devices = range(torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}" for device in devices]


def test_gpus_have_the_names_that_torch_has_for_them() -> None:
    names = list_gpus()
    if names[0].startswith("MIG-"):
        pytest.skip("torch names the GPU of a MIG instance")
    assert names == shown_to_this_process()


def test_two_stages_share_no_gpu_and_the_second_waits() -> None:
    """As many stages as there are GPUs compute side by side; one more waits for the first."""
    names = list_gpus()
    command = [sys.executable, "-c", "import logging\nlogging.basicConfig(level=20)" + STAGE]
    start = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    stages = [subprocess.Popen(command, **start, **pipes) for _ in names]
    try:
        found = [stage.stdout.readline().split() for stage in stages]
        assert [count for count, _ in found] == ["1"] * len(names)
        assert len({uuid for _, uuid in found}) == len(names)
        stages.append(subprocess.Popen(command, **start, **pipes))
        while "waiting for 1 of " not in (line := stages[-1].stderr.readline()):
            assert line, "the stage ended without waiting"
        stages[0].kill()
        assert stages[-1].stdout.readline().split() == found[0]
    finally:
        for stage in stages:
            stage.kill()
            stage.communicate()
