"""A training in a process of its own, which a test kills."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from model.encoder.encoder import Encoder
from model.training.settings import LoraSettings, MemorySettings, TrainingSource, TrainSettings
from model.training.trainer import train

if __name__ == "__main__":
    base, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    del settings["options"]
    torch.set_num_threads(1)
    settings["lora"] = settings["lora"] and LoraSettings(**settings["lora"])
    settings["memory"] = settings["memory"] and MemorySettings(**settings["memory"])
    source = TrainingSource("pairs", "retrieval", "Q: ", "", pq.read_table("table.parquet"), 1.0)
    train(
        Encoder.load(base),
        [source],
        checkpoint_folder=folder / "checkpoint",
        log_path=folder / "training.jsonl",
        settings=TrainSettings(**settings),
    )
