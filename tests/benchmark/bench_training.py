"""Training pairs per second beside sentence-transformers: python tests/benchmark/bench_training.py.

The same weights, texts, batches and learning rate. Ours is the trainer as the stages run it, in the
precision it chooses for this machine. The rivals are sentence-transformers' losses under the same
optimiser: its defaults (float32, one padded batch per side) and its faster settings (bfloat16; the
cached loss with micro-batches by tokens). Its best one counts. All run in turn, several times; a
step is timed from texts to updated weights. Ratios above 1 mean that ours is faster. Before that
the first loss of all is compared in float32.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder import Encoder
from model.precision import Precision, decoder_autocast, fast_precision
from tests.benchmark.workload import (
    LEARNING_RATE,
    SETS,
    TEMPERATURE,
    Ours,
    Pairs,
    lognormal_pairs,
    make_model,
)

ROUNDS = 3

logger = logging.getLogger("bench_training")


@dataclass
class Theirs:
    """A loss of sentence-transformers, its own tokenisation, and the same optimiser."""

    folder: Path
    batches: list[Pairs]
    precision: Precision
    is_cached: bool = False

    def __post_init__(self) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = SentenceTransformer(str(self.folder), device=device)
        scale = 1 / TEMPERATURE
        self._loss: Any = (
            losses.CachedMultipleNegativesRankingLoss(
                self._model, scale=scale, mini_batch_num_tokens=16384
            )
            if self.is_cached
            else losses.MultipleNegativesRankingLoss(self._model, scale=scale)
        )

    def run(self) -> list[float]:
        """Loss of each step."""
        optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self._model.train()
        found = []
        for batch in self.batches:
            sides = [[pair[side] for pair in batch] for side in (0, 1)]
            features = [self._model.preprocess(texts) for texts in sides]
            features = [
                {
                    name: value.to(self._model.device) if torch.is_tensor(value) else value
                    for name, value in side.items()
                }
                for side in features
            ]
            with decoder_autocast(self._model.device, self.precision):
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
    for name in SETS:
        compare(name, chosen.batch, chosen.steps)


def compare(name: str, batch: int, steps: int) -> None:
    """Time all ways on one set of texts and print the table."""
    pairs = lognormal_pairs(name, batch * steps)
    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, pairs)
        check_equal_loss(folder, batches[:1], device)
        chosen = fast_precision(device)
        ours_run = Ours(Encoder.load(folder, device=device), batches, chosen).run
        ways: dict[str, Callable[[], list[float]]] = {
            "fp32 (defaults)": Theirs(folder, batches, "fp32").run,
            "fp32, cached": Theirs(folder, batches, "fp32", is_cached=True).run,
        }
        if chosen == "bf16":  # emulated elsewhere, several times slower than float32
            ways["bf16"] = Theirs(folder, batches, "bf16").run
            ways["bf16, cached"] = Theirs(folder, batches, "bf16", is_cached=True).run
        seconds = time_in_turn({f"ours, {chosen}": ours_run} | ways, steps)
    ours, *theirs = seconds.values()
    logger.info("%s texts, batch %d:", name, batch)
    for way, value in seconds.items():
        logger.info(
            "  %-16s %6.2f s/step %6.0f pairs/s  ours %.2fx",
            *(way, value, batch / value, value / ours),
        )
    logger.info(
        "  against its best %.2fx, against its defaults %.2fx",
        *(min(theirs) / ours, theirs[0] / ours),
    )


def time_in_turn(ways: dict[str, Callable[[], list[float]]], steps: int) -> dict[str, float]:
    """Median seconds per step of each way, all run in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[way].append((time.perf_counter() - started) / steps)
    return {way: statistics.median(times) for way, times in seconds.items()}


def check_equal_loss(folder: Path, batch: list[Pairs], device: torch.device) -> None:
    """Stop unless all ways find the same first loss in float32."""
    expected = Theirs(folder, batch, "fp32").run()[0]
    for found in (
        Ours(Encoder.load(folder, device=device), batch, "fp32").run()[0],
        Theirs(folder, batch, "fp32", is_cached=True).run()[0],
    ):
        if abs(found - expected) > 1e-3 * expected:
            raise SystemExit(f"the losses differ: {found} and {expected}")


if __name__ == "__main__":
    main()
