"""One process of a team that trains several times, with whole weights and with shared ones."""

import dataclasses
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from model.encoder.encoder import Encoder
from model.training.devices.sharding import sharded_copy
from model.training.devices.team import Team
from model.training.settings import LoraSettings, TrainingSource, TrainSettings
from model.training.step_log import StepRecord
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS

FULL_BYTES = 20_000
"""More than the log, less than a share of the weights."""


class StoppedForTestError(Exception):
    """Stands for a process that dies."""


def settings_of(case: dict[str, Any]) -> TrainSettings:
    """Micro-batches of 60 tokens: both passes of GradCache, and unequal numbers of them."""
    settings = dataclasses.replace(SETTINGS, micro_batch_tokens=60, shard_weights=case["shared"])
    if case["adapters"]:
        adapters = LoraSettings(4, 8, 0.1, ("q_proj", "down_proj"))
        settings = dataclasses.replace(settings, lora=adapters, activation_checkpointing=True)
    return settings


def run(model: Path, table: Path, folder: Path, case: dict[str, Any]) -> None:
    """Train; the leading process writes weights.pt, unless the case stops the training.

    With "full_at" the disk is full for the last process when that step is to be saved.
    """
    encoder = Encoder.load(model)

    def stop(record: StepRecord) -> None:
        if record.step == case.get("stop_after"):
            raise StoppedForTestError
        if record.step == case.get("full_at") and dist.get_rank() == dist.get_world_size() - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))

    folder.mkdir(exist_ok=True)
    try:
        train(
            encoder,
            [TrainingSource("pairs", "retrieval", "Q: ", "", pq.read_table(table), 1.0)],
            checkpoint_folder=folder / "checkpoint",
            log_path=folder / "training.jsonl",
            settings=settings_of(case),
            on_step=stop,
        )
    except StoppedForTestError:
        return
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (folder / f"error-{dist.get_rank()}.txt").write_text(str(error))
        return
    if Team().leads:
        torch.save(encoder.state_dict(), folder / "weights.pt")


def held_numbers(model: Path) -> tuple[int, int]:
    """Numbers of a shared decoder that this process holds, and all there are."""
    encoder = Encoder.load(model)
    shared = sharded_copy(encoder, Team()).backbone.parameters()
    held = sum(weight.to_local().numel() for weight in shared)  # pyright: ignore[reportCallIssue]
    return held, sum(weight.numel() for weight in encoder.backbone.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, table, folder = map(Path, sys.argv[1:4])
    for case in json.loads(sys.argv[4]):
        run(model, table, folder / case["name"], case)
    numbers = json.dumps(held_numbers(model))
    (folder / f"held-{dist.get_rank()}.json").write_text(numbers)
    dist.destroy_process_group()
