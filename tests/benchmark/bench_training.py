"""Training steps per second beside sentence-transformers: python tests/benchmark/bench_training.py.

The same weights, texts, batches and learning rate. Ours is the trainer as the stages run it, in
bfloat16. The rivals are sentence-transformers' losses under the same optimiser: its defaults
(float32, one padded batch per side) and its faster settings (bfloat16; the cached loss with
micro-batches by tokens). Its best one counts. All run in turn, several times; a step is timed from
texts to updated weights. Ratios above 1 mean that ours is faster. Before that the first loss of
all is compared in float32.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder import Encoder
from model.pooling.build import PoolingSettings
from model.scratch import DecoderSize, new_decoder, train_tokenizer
from model.training.batches import BatchPlan
from model.training.settings import TrainingSource, TrainSettings
from model.training.team import Team
from model.training.trainer import Trainer

ROUNDS = 3
TEMPERATURE = 0.05
LEARNING_RATE = 1e-4
SETS = {"mixed": (20.0, 90.0), "short": (10.0, 12.0)}
"""Mean tokens of queries and documents; lognormal, cut at 512."""

logger = logging.getLogger("bench_training")


def lognormal_texts(count: int, mean: float, rng: np.random.Generator) -> list[str]:
    """Distinct texts of about `mean` words each, at most 512."""
    sigma = 0.7
    words = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count).clip(2, 512).astype(int)
    return [
        " ".join(f"слово{word}" for word in (rng.zipf(1.3, size) % 800)) + f" {number}"
        for number, size in enumerate(words)
    ]


def make_model(folder: Path, texts: list[str]) -> None:
    """A decoder of 256 x 6 with a tokenizer that gives about one token per word."""
    size = DecoderSize(
        hidden_size=256, intermediate_size=704, num_layers=6,
        num_heads=4, num_key_value_heads=2, head_dim=64,
    )  # fmt: skip
    tokenizer = train_tokenizer(texts, 4000)
    decoder = new_decoder(size, len(tokenizer), seed=0).model
    decoder.config.is_causal = False
    Encoder(decoder, tokenizer, PoolingSettings(kind="mean"), max_length_tokens=512).save(folder)


class Ours:
    """The trainer of the stages."""

    def __init__(self, folder: Path, batches: list[list[tuple[str, str]]], precision: Any) -> None:
        self._encoder = Encoder.load(folder)
        self._batches = batches
        self._precision = precision
        self._work = Path(tempfile.mkdtemp())

    def run(self) -> list[float]:
        """Loss of each step."""
        rows = [pair for batch in self._batches for pair in batch]
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
        steps, size = len(self._batches), len(self._batches[0])
        settings = TrainSettings(
            max_steps=steps, batch_size=size, micro_batch_tokens=16384, max_length_tokens=512,
            learning_rate=LEARNING_RATE, min_learning_rate_share=1.0, warmup_steps=0,
            weight_decay=0.0, gradient_clip_norm=1.0, loss="giga", temperature=TEMPERATURE,
            hard_negatives=0, margin_from_step=1, matryoshka_dims=(), source_temperature=1.0,
            precision=self._precision, log_every_steps=1, checkpoint_every_steps=10**6, seed=0,
        )  # fmt: skip
        plan = BatchPlan([source], np.zeros(steps, dtype=int), settings, self._encoder, self._work)
        trainer = Trainer(self._encoder, plan, settings, self._work, Team())
        return [trainer.step(step).loss for step in range(1, steps + 1)]


class Theirs:
    """A loss of sentence-transformers, its own tokenisation, and the same optimiser."""

    def __init__(
        self, folder: Path, batches: list[list[tuple[str, str]]], precision: str, cached: bool
    ) -> None:
        self._model = SentenceTransformer(str(folder), device="cpu")
        self._batches = batches
        self._precision = precision
        scale = 1 / TEMPERATURE
        self._loss: Any = (
            losses.CachedMultipleNegativesRankingLoss(
                self._model, scale=scale, mini_batch_num_tokens=16384
            )
            if cached
            else losses.MultipleNegativesRankingLoss(self._model, scale=scale)
        )

    def run(self) -> list[float]:
        """Loss of each step."""
        optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self._model.train()
        found = []
        for batch in self._batches:
            sides = [[pair[side] for pair in batch] for side in (0, 1)]
            features = [self._model.preprocess(texts) for texts in sides]
            with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bf16"):
                loss = self._loss(features, torch.empty(0))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found


def main() -> None:
    """Print seconds per step, pairs per second and ratios for each set of texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    for name, means in SETS.items():
        compare(name, means, chosen.batch, chosen.steps)


def compare(name: str, means: tuple[float, float], batch: int, steps: int) -> None:
    """Time all ways on one set of texts and print the table."""
    rng = np.random.default_rng(0)
    queries, documents = (lognormal_texts(batch * steps, mean, rng) for mean in means)
    pairs = list(zip(queries, documents, strict=True))
    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, queries + documents)
        check_equal_loss(folder, batches[:1])
        ways: dict[str, Callable[[], list[float]]] = {
            "ours, bf16": Ours(folder, batches, "bf16").run,
            "defaults": Theirs(folder, batches, "fp32", cached=False).run,
            "bf16": Theirs(folder, batches, "bf16", cached=False).run,
            "bf16, cached": Theirs(folder, batches, "bf16", cached=True).run,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                seconds[way].append((time.perf_counter() - started) / steps)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    ours = median["ours, bf16"]
    best = min(value for way, value in median.items() if way != "ours, bf16")
    logger.info("%s texts, batch %d:", name, batch)
    for way, value in median.items():
        logger.info(
            "  %-14s %6.2f s/step %6.0f pairs/s  ours %.2fx",
            way,
            value,
            batch / value,
            value / ours,
        )
    logger.info(
        "  against its best %.2fx, against its defaults %.2fx",
        best / ours, median["defaults"] / ours,
    )  # fmt: skip


def check_equal_loss(folder: Path, batch: list[list[tuple[str, str]]]) -> None:
    """Stop unless all ways find the same first loss in float32."""
    expected = Theirs(folder, batch, "fp32", cached=False).run()[0]
    for found in (
        Ours(folder, batch, "fp32").run()[0],
        Theirs(folder, batch, "fp32", cached=True).run()[0],
    ):
        if abs(found - expected) > 1e-3 * expected:
            raise SystemExit(f"the losses differ: {found} and {expected}")


if __name__ == "__main__":
    main()
