"""Texts encoded per second beside SentenceTransformer.encode: tests/benchmark/bench_encoding.py.

The same folder and texts, each side with its best settings: ours gets its best number of tokens a
pass, the rival its best batch size, in float32 and, where the machine has instructions for it, in
bfloat16. All run in turn; the vectors are compared first. Ratios above 1
mean that ours is faster.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder import Encoder
from model.precision import Precision, decoder_autocast, fast_precision
from tests.benchmark.workload import SETS, lognormal_pairs, make_model

ROUNDS = 3
OUR_TOKENS = (2048, 4096, 16384)
THEIR_BATCHES = (16, 32, 128)

logger = logging.getLogger("bench_encoding")


def main() -> None:
    """Print texts per second and ratios for each set of texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    count = parser.parse_args().texts
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    for name in SETS:
        compare(name, count)


def compare(name: str, count: int) -> None:
    """Time both on one set of texts and print the table."""
    pairs = lognormal_pairs(name, count // 2)
    texts = [text for pair in pairs for text in pair]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = fast_precision(device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, pairs)
        encoder = Encoder.load(folder, device=device)
        rival = SentenceTransformer(str(folder), device=str(device))

    def ours(tokens: int) -> Callable[[], np.ndarray]:
        return lambda: encoder.encode(texts, batch_tokens=tokens, precision=precision)

    def theirs(batch: int, their_precision: Precision) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with decoder_autocast(device, their_precision):
                return rival.encode(texts, batch_size=batch, show_progress_bar=False)

        return run

    ways = {f"ours, {tokens} tokens": ours(tokens) for tokens in OUR_TOKENS}
    for their_precision in sorted({"fp32", precision}):
        for batch in THEIR_BATCHES:
            ways[f"{their_precision}, batch {batch}"] = theirs(batch, their_precision)
    check_equal_vectors(ours(OUR_TOKENS[0])(), theirs(32, "fp32")())
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - started)
    report(name, len(texts), {way: statistics.median(times) for way, times in seconds.items()})


def check_equal_vectors(found: np.ndarray, expected: np.ndarray) -> None:
    """Stop unless every text has the same direction on both sides."""
    lowest = float((found * expected).sum(axis=1).min())
    if lowest < 0.999:  # bfloat16 keeps three digits
        raise SystemExit(f"the vectors differ: lowest cosine {lowest:.4f}")


def report(name: str, count: int, seconds: dict[str, float]) -> None:
    """Print one line per way and the ratio of the best ones."""
    best = min(value for way, value in seconds.items() if way.startswith("ours"))
    rival = min(value for way, value in seconds.items() if not way.startswith("ours"))
    logger.info("%s texts, %d of them:", name, count)
    for way, value in seconds.items():
        logger.info("  %-18s %6.0f texts/s  our best %.2fx", way, count / value, value / best)
    logger.info("  our best against its best %.2fx", rival / best)


if __name__ == "__main__":
    main()
