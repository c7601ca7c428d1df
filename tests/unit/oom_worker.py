"""One process of a team whose second process has less memory than the first."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from model.encoder.encoder import Encoder
from model.training import trainer
from model.training.devices import micro_batches, team
from model.training.settings import TrainingSource
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS


def train_with_room(model: Path, table: Path, folder: Path, room: int) -> None:
    """Train; second passes of GradCache over more tokens do not fit into process 1."""
    encoder = Encoder.load(model)
    embed = encoder.embed

    def embed_if_it_fits(items: list) -> torch.Tensor:
        is_late = torch.is_grad_enabled()
        if dist.get_rank() == 1 and is_late and sum(len(item.ids) for item in items) > room:
            raise torch.OutOfMemoryError("simulated")
        return embed(items)

    encoder.embed = embed_if_it_fits
    train(
        encoder,
        [TrainingSource("pairs", "retrieval", "Q: ", "", pq.read_table(table), 1.0)],
        checkpoint_folder=folder / "checkpoint",
        log_path=folder / "training.jsonl",
        settings=dataclasses.replace(SETTINGS, micro_batch_tokens=200),
    )
    torch.save(encoder.state_dict(), folder / f"weights-{dist.get_rank()}.pt")


def fail_once(holder: Any, name: str) -> None:
    """Have process 1 run out of memory where `holder.name` is called first."""
    real = getattr(holder, name)

    def failing(*arguments: Any, **options: Any) -> Any:
        setattr(holder, name, real)
        raise torch.OutOfMemoryError("simulated")

    if dist.get_rank() == 1:
        setattr(holder, name, failing)


PLACES = {
    "objective": (trainer, "objective_of_sub_batches"),
    "gradients": (team, "_flat"),
    "norm": (trainer, "clip_gradients"),
}
"""Where memory is taken beside the passes."""


def fail_in_the_optimiser(model: Path, table: Path, folder: Path) -> None:
    """Its moments do not fit: no step is taken twice, and both processes give up."""
    fail_once(torch.optim.AdamW, "step")
    try:
        train_with_room(model, table, folder, 10**9)
    except team.TeamOutOfMemoryError:
        (folder / f"given-up-{dist.get_rank()}").touch()


if __name__ == "__main__":
    model, table, folder = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    micro_batches.FEWEST_TOKENS = 20
    train_with_room(model, table, folder / "roomy", 10**9)
    train_with_room(model, table, folder / "small", 60)
    for name, (holder, function) in PLACES.items():
        fail_once(holder, function)
        train_with_room(model, table, folder / name, 10**9)
    fail_in_the_optimiser(model, table, folder / "optimiser")
    dist.destroy_process_group()
