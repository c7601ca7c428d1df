"""What the benchmarks of the engine share: texts, a small model, the trainer as stages run it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.encoder import Encoder
from model.pooling.build import PoolingSettings
from model.precision import Precision
from model.scratch import DecoderSize, new_decoder, train_tokenizer
from model.training.batches import BatchPlan
from model.training.settings import TrainingSource, TrainSettings
from model.training.team import Team
from model.training.trainer import Trainer

Pairs = list[tuple[str, str]]

TEMPERATURE = 0.05
LEARNING_RATE = 1e-4
MAX_TOKENS = 512
SETS = {"mixed": (20.0, 90.0), "short": (10.0, 12.0)}
"""Mean tokens of queries and documents; lognormal, cut at 512."""
WORDS = np.array(["слово" + "".join("абвгдежзик"[int(d)] for d in f"{n:03}") for n in range(800)])
"""Of letters alone: a tokenizer never joins letters and digits."""
SIZE = DecoderSize(
    hidden_size=256, intermediate_size=704, num_layers=6,
    num_heads=4, num_key_value_heads=2, head_dim=64,
)  # fmt: skip


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


def make_model(folder: Path, pairs: Pairs) -> None:
    """A decoder of 256 x 6 with a tokenizer that gives about one token per word."""
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], 4000)
    decoder = new_decoder(SIZE, len(tokenizer), seed=0).model
    decoder.config.is_causal = False
    settings = PoolingSettings(kind="mean")
    Encoder(decoder, tokenizer, settings, max_length_tokens=MAX_TOKENS).save(folder)


@dataclass
class Ours:
    """The trainer of the stages on a list of batches of pairs."""

    encoder: Encoder
    batches: list[Pairs]
    precision: Precision
    micro_batch_tokens: int = 16384

    def trainer(self) -> Trainer:
        """A trainer before its first step; tokenising the batches is part of making it."""
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
        )  # fmt: skip
        work = Path(tempfile.mkdtemp())
        plan = BatchPlan([source], np.zeros(steps, dtype=int), settings, self.encoder, work)
        return Trainer(self.encoder, plan, settings, work, Team())

    def run(self) -> list[float]:
        """Loss of each step."""
        trainer = self.trainer()
        return [trainer.step(step).loss for step in range(1, len(self.batches) + 1)]
