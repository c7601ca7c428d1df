"""One process of a team that trains with sharded weights, or with whole ones to compare."""

import dataclasses
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from model.encoder import Encoder
from model.training.settings import LoraSettings, TrainingSource
from model.training.sharding import sharded_copy
from model.training.step_log import StepRecord
from model.training.team import Team
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS


class StoppedForTestError(Exception):
    """Stands for a process that dies."""


def main(model: Path, table: Path, folder: Path, options: dict) -> None:
    """Train as `options` say; the leading process writes weights.pt, every one held.json."""
    stop_after = options.pop("stop_after", None)
    if "lora" in options:
        options["lora"] = LoraSettings(4, 8, 0.1, ("q_proj", "down_proj"))
    encoder = Encoder.load(model)

    def stop(record: StepRecord) -> None:
        if record.step == stop_after:
            raise StoppedForTestError

    if options["shard_weights"]:
        copy = sharded_copy(encoder, Team())
        held = sum(weight.to_local().numel() for weight in copy.backbone.parameters())  # pyright: ignore[reportCallIssue]
        every = sum(weight.numel() for weight in encoder.backbone.parameters())
        (folder / f"held-{dist.get_rank()}.json").write_text(json.dumps([held, every]))
    try:
        train(
            encoder,
            [TrainingSource("pairs", "retrieval", "Q: ", "", pq.read_table(table), 1.0)],
            checkpoint_folder=folder / "checkpoint",
            log_path=folder / "training.jsonl",
            settings=dataclasses.replace(SETTINGS, micro_batch_tokens=60, **options),
            on_step=stop,
        )
    except StoppedForTestError:
        return
    if Team().leads:
        torch.save(encoder.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]))
    dist.destroy_process_group()
