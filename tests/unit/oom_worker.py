"""One process of a team whose second process has less memory than the first."""

import dataclasses
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from model.encoder.encoder import Encoder
from model.training.devices import micro_batches
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


if __name__ == "__main__":
    model, table, folder = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    micro_batches.FEWEST_TOKENS = 20
    train_with_room(model, table, folder / "roomy", 10**9)
    train_with_room(model, table, folder / "small", 60)
    dist.destroy_process_group()
