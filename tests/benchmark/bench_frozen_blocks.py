"""Trainings that leave lower blocks alone: python tests/benchmark/bench_frozen_blocks.py.

The same weights, texts and batches; five of six blocks and the embeddings are not trained, each
text is met in several epochs. Ours looks their states up and is timed with the pass that computes
them; the loss of sentence-transformers runs on weights that need no gradient, as its users freeze
them. Beside them, ours with all blocks trained. Ratios above 1 mean that ours, with frozen blocks,
is faster. Before that the loss of the first batch is compared; that whole trainings are the
same is a test (tests/unit/test_frozen_blocks.py).
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder.blocks import named_blocks
from model.encoder.encoder import Encoder
from tests.benchmark.bench_training import Theirs
from tests.benchmark.workload import Ours, Pairs, lognormal_pairs, make_model

FROZEN = 5
LARGEST_DIFFERENCE = 1e-3
"""Of a loss, as a share of it: states in float16."""

logger = logging.getLogger("bench_frozen_blocks")


def main() -> None:
    """Print seconds of each way and what they are to ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    pairs = lognormal_pairs("mixed", chosen.batch * chosen.steps)
    batches = [pairs[start : start + chosen.batch] for start in range(0, len(pairs), chosen.batch)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, pairs)
        check_equal_loss(folder, batches[0])
        for epochs in chosen.epochs:
            compare(folder, batches * epochs, epochs, chosen.rounds)


def ways_of(folder: Path, batches: list[Pairs]) -> dict[str, Callable[[], list[float]]]:
    """Each way to take the steps, from the same weights every time."""

    def ours(frozen: int) -> list[float]:
        return Ours(Encoder.load(folder), batches, "fp32", frozen_blocks=frozen).run()

    def theirs() -> list[float]:
        loss = Theirs(folder, batches, "fp32")
        transformer: Any = loss.model[0]
        decoder = transformer.auto_model
        decoder.get_input_embeddings().requires_grad_(False)
        for block in named_blocks(decoder)[1][:FROZEN]:
            block.requires_grad_(False)
        return loss.run()

    return {
        "ours, frozen": lambda: ours(FROZEN),
        "ours, all": lambda: ours(0),
        "theirs, frozen": theirs,
    }


def compare(folder: Path, batches: list[Pairs], epochs: int, rounds: int) -> None:
    """Time all ways in turn and print the table."""
    ways = ways_of(folder, batches)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - started)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    logger.info("%d epochs of %d pairs:", epochs, sum(map(len, batches)) // epochs)
    for way, median in medians.items():
        logger.info("  %-15s %7.2f s  %.2fx", way, median, median / medians["ours, frozen"])


def check_equal_loss(folder: Path, batch: Pairs) -> None:
    """Stop unless both frozen ways find the same loss: of one batch, since ours orders the rows."""
    ways = ways_of(folder, [batch])
    [found], [expected] = ways["ours, frozen"](), ways["theirs, frozen"]()
    if abs(found - expected) > LARGEST_DIFFERENCE * expected:
        raise SystemExit(f"the losses differ: {found} and {expected}")


if __name__ == "__main__":
    main()
