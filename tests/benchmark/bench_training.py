"""Training pairs per second beside sentence-transformers: python tests/benchmark/bench_training.py.

The same weights, texts, batches and learning rate. Ours is the trainer as the stages run it, in the
precision it chooses for this machine. The rivals are sentence-transformers' losses under the same
optimiser: its defaults (float32, one padded batch per side) and its faster settings (bfloat16; the
cached loss with micro-batches by tokens). Its best one counts. All run in turn, several times; a
step is timed from texts to updated weights. Ratios above 1 mean that ours is faster. Before that
the first loss of all is compared in float32. Only the weights of the way that runs are on the
device. A way the memory is too small for is named, left out. On a GPU the decoder has the shape of
Qwen3-0.6B. Ours runs plain and, where torch.compile can build kernels, compiled.
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
from model.encoder.compilation import has_compiler
from model.encoder.encoder import Encoder
from model.encoder.precision import Precision, decoder_autocast, fast_precision
from tests.benchmark.workload import (
    LEARNING_RATE,
    SETS,
    SIZES,
    TEMPERATURE,
    Ours,
    Pairs,
    default_size,
    lognormal_pairs,
    make_model,
    the_device,
)

DEFAULTS = "fp32 (defaults)"
CACHED_TOKENS = (4096, 16384)

logger = logging.getLogger("bench_training")


@dataclass
class Way:
    """One way to take the steps."""

    model: torch.nn.Module
    """What has to be on the device."""
    run: Callable[[], object]


@dataclass
class Theirs:
    """A loss of sentence-transformers, its own tokenisation, and the same optimiser."""

    folder: Path
    batches: list[Pairs]
    precision: Precision
    cached_tokens: int | None = None
    """Tokens of a micro-batch of the cached loss; None for the plain one."""

    def __post_init__(self) -> None:
        self.model = SentenceTransformer(str(self.folder), device="cpu")
        scale = 1 / TEMPERATURE
        self._loss: Any = (
            losses.MultipleNegativesRankingLoss(self.model, scale=scale)
            if self.cached_tokens is None
            else losses.CachedMultipleNegativesRankingLoss(
                self.model, scale=scale, mini_batch_num_tokens=self.cached_tokens
            )
        )

    def run_on(self, device: torch.device) -> list[float]:
        """The same, the weights there for as long."""
        self.model.to(device)
        try:
            return self.run()
        finally:
            self.model.to("cpu")

    def run(self) -> list[float]:
        """Loss of each step."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.model.train()
        found = []
        for batch in self.batches:
            sides = [[pair[side] for pair in batch] for side in (0, 1)]
            features = [self.model.preprocess(texts) for texts in sides]
            features = [
                {
                    name: value.to(self.model.device) if torch.is_tensor(value) else value
                    for name, value in side.items()
                }
                for side in features
            ]
            # the backward pass of the cached loss embeds again
            with decoder_autocast(self.model.device, self.precision):
                loss = self._loss(features, torch.empty(0))
                loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found


def main() -> None:
    """Print seconds per step, pairs per second and ratios for each set of texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default=default_size(the_device()))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    for name in chosen.sets:
        compare(name, chosen)


def compare(name: str, chosen: argparse.Namespace) -> None:
    """Time all ways on one set of texts and print the table."""
    batch, steps, device = chosen.batch, chosen.steps, the_device()
    pairs = lognormal_pairs(name, batch * steps)
    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, pairs, chosen.size)
        check_equal_loss(folder, [pairs[: min(batch, 64)]], device)
        ways = ways_of(folder, batches, chosen.micro_batch_tokens, device)
        seconds = time_in_turn(ways, steps, chosen.rounds)
    report(name, batch, seconds)


def ways_of(
    folder: Path, batches: list[Pairs], tokens: int, device: torch.device
) -> dict[str, Way]:
    """Each way to take the steps of the batches, ours first."""
    fast = fast_precision(device)

    def ours(*, is_compiled: bool) -> Way:
        encoder = Encoder.load(folder, device=torch.device("cpu"))
        run = Ours(encoder, batches, fast, tokens, compile_blocks=is_compiled).run
        return Way(encoder, run)

    def theirs(precision: Precision, cached_tokens: int | None = None) -> Way:
        loss = Theirs(folder, batches, precision, cached_tokens)
        return Way(loss.model, loss.run)

    ways = {f"ours, {fast}": ours(is_compiled=False)}
    if device.type == "cuda" or has_compiler():
        ways[f"ours, {fast}, compiled"] = ours(is_compiled=True)
    ways[DEFAULTS] = theirs("fp32")
    if fast == "bf16":  # emulated elsewhere, several times slower than float32
        ways["bf16"] = theirs("bf16")
    for cached_tokens in CACHED_TOKENS:
        ways[f"{fast}, cached, {cached_tokens}"] = theirs(fast, cached_tokens)
    return ways


def report(name: str, batch: int, seconds: dict[str, float]) -> None:
    """Print the table and the ratios."""
    ours = min(value for way, value in seconds.items() if way.startswith("ours"))
    theirs = [value for way, value in seconds.items() if not way.startswith("ours")]
    logger.info("%s texts, batch %d:", name, batch)
    for way, value in seconds.items():
        logger.info(
            "  %-21s %6.3f s/step %6.0f pairs/s  ours %.2fx",
            *(way, value, batch / value, value / ours),
        )
    defaults = seconds.get(DEFAULTS)
    logger.info(
        "  against its best %.2fx, against its defaults %s",
        *(min(theirs) / ours, "not measured" if defaults is None else f"{defaults / ours:.2f}x"),
    )


def time_in_turn(ways: dict[str, Way], steps: int, rounds: int) -> dict[str, float]:
    """Median seconds per step of each way, all run in turn, after one round that warms up.

    A way without memory for its steps is dropped.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in list(seconds):
            taken = seconds_of(ways[way])
            if taken is None:
                logger.info("  %s: out of memory", way)
                del seconds[way]
            elif number:
                seconds[way].append(taken / steps)
    return {way: statistics.median(times) for way, times in seconds.items()}


def seconds_of(way: Way) -> float | None:
    """Seconds of its steps, its weights on the device for as long; None without the memory."""
    way.model.to(the_device())
    started = time.perf_counter()
    try:
        way.run()
        taken = time.perf_counter() - started
    except torch.OutOfMemoryError:
        taken = None
    # here the exception is gone, and with it the tensors that its trace held
    way.model.to("cpu")
    torch.cuda.empty_cache()
    return taken


def check_equal_loss(folder: Path, batch: list[Pairs], device: torch.device) -> None:
    """Stop unless all ways find the same first loss in float32."""
    plain, cached = (Theirs(folder, batch, "fp32", tokens) for tokens in (None, CACHED_TOKENS[0]))
    expected = plain.run_on(device)[0]
    for found in (
        Ours(Encoder.load(folder, device=device), batch, "fp32").run()[0],
        cached.run_on(device)[0],
    ):
        if abs(found - expected) > 1e-3 * expected:
            raise SystemExit(f"the losses differ: {found} and {expected}")


if __name__ == "__main__":
    main()
