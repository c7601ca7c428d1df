"""What the benchmarks of the engine share: texts, a small model, the trainer as stages run it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from model.backbone.scratch import DecoderSize, new_decoder, train_tokenizer
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from model.encoder.precision import Precision
from model.training.data.batches import BatchPlan
from model.training.devices.team import Team
from model.training.devices.wrapping import wrapped_for_training
from model.training.frozen_blocks import above_frozen_blocks
from model.training.settings import TrainingSource, TrainSettings
from model.training.trainer import Trainer

Pairs = list[tuple[str, str]]

TEMPERATURE = 0.05
LEARNING_RATE = 1e-4
MAX_TOKENS = 512
SETS = {"mixed": (20.0, 90.0), "short": (10.0, 12.0)}
"""Mean tokens of queries and documents; lognormal, cut at 512."""
WORDS = np.array(["слово" + "".join("абвгдежзик"[int(d)] for d in f"{n:03}") for n in range(800)])
"""Of letters alone: a tokenizer never joins letters and digits."""
SIZES = {
    "small": DecoderSize(
        hidden_size=256, intermediate_size=704, num_layers=6,
        num_heads=4, num_key_value_heads=2, head_dim=64,
    ),
    "0.6b": DecoderSize(
        hidden_size=1024, intermediate_size=3072, num_layers=28,
        num_heads=16, num_key_value_heads=8, head_dim=128,
    ),
    "3b": DecoderSize(
        hidden_size=2048, intermediate_size=11008, num_layers=36,
        num_heads=16, num_key_value_heads=2, head_dim=128,
    ),
}  # fmt: skip
"""Decoders: one for a processor, and the shapes of Qwen3-0.6B and Qwen2.5-3B, vocabulary aside."""


def lognormal_texts(count: int, mean: float, rng: np.random.Generator) -> list[str]:
    """Distinct texts of about `mean` words each, at most 512; a word is one token."""
    sigma = 0.7
    words = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count).clip(2, MAX_TOKENS)
    return [
        " ".join(WORDS[rng.zipf(1.3, size) % len(WORDS)]) + f" {number}"
        for number, size in enumerate(words.astype(int))
    ]


def lognormal_pairs(name: str, count: int) -> Pairs:
    """Query and document of each pair of a set, the same for every call."""
    rng = np.random.default_rng(0)
    queries, documents = (lognormal_texts(count, mean, rng) for mean in SETS[name])
    return list(zip(queries, documents, strict=True))


def default_size(device: torch.device) -> str:
    """The decoder a device of this kind is there for."""
    return "0.6b" if device.type == "cuda" else "small"


def the_device() -> torch.device:
    """Where everything runs: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_encoder(size: str, pairs: Pairs, device: torch.device) -> Encoder:
    """An untrained encoder with a tokenizer that gives about one token per word."""
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], 4000)
    with device:  # a GPU draws billions of weights in a second
        decoder = new_decoder(SIZES[size], len(tokenizer), seed=0).model
    decoder.config.is_causal = False
    settings = PoolingSettings(kind="mean")
    return Encoder(decoder, tokenizer, settings, max_length_tokens=MAX_TOKENS)


def make_model(folder: Path, pairs: Pairs, size: str = "small") -> None:
    """Save such an encoder."""
    new_encoder(size, pairs, the_device()).save(folder)


@dataclass
class Ours:
    """The trainer of the stages on a list of batches of pairs."""

    encoder: Encoder
    batches: list[Pairs]
    precision: Precision
    micro_batch_tokens: int = 16384
    compile_blocks: bool = False
    frozen_blocks: int = 0

    @contextmanager
    def training(self) -> Iterator[Trainer]:
        """A trainer before its first step; a thread tokenises the batches, as in a stage."""
        rows = [pair for batch in self.batches for pair in batch]
        table = pa.table(
            {
                "id": [str(number) for number in range(len(rows))],
                "query": [query for query, _ in rows],
                "positives": [[document] for _, document in rows],
                "negatives": pa.array([[] for _ in rows], pa.list_(pa.string())),
                "score": pa.nulls(len(rows), pa.float32()),
            }
        )
        source = TrainingSource("bench", "retrieval", "", "", table, 1.0)
        steps, size = len(self.batches), len(self.batches[0])
        settings = TrainSettings(
            max_steps=steps, batch_size=size, micro_batch_tokens=self.micro_batch_tokens,
            max_length_tokens=MAX_TOKENS, learning_rate=LEARNING_RATE,
            min_learning_rate_share=1.0, warmup_steps=0, weight_decay=0.0, gradient_clip_norm=1.0,
            loss="giga", temperature=TEMPERATURE, hard_negatives=0, margin_from_step=1,
            matryoshka_dims=(), source_temperature=1.0, precision=self.precision,
            log_every_steps=1, checkpoint_every_steps=10**6, seed=0,
            compile_blocks=self.compile_blocks, frozen_blocks=self.frozen_blocks,
        )  # fmt: skip
        work = Path(tempfile.mkdtemp())
        plan = BatchPlan([source], np.zeros(steps, dtype=int), settings, self.encoder, work)
        encoder = self.encoder
        if self.frozen_blocks:
            encoder = above_frozen_blocks(encoder, plan, settings, work / "states")
        with wrapped_for_training(encoder, settings, Team()) as trained, plan.prepared_ahead():
            yield Trainer(trained, plan, settings, work, Team())

    def run(self) -> list[float]:
        """Loss of each step."""
        with self.training() as trainer:
            return [trainer.step(step).loss for step in range(1, len(self.batches) + 1)]
