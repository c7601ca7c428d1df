"""Texts encoded per second beside SentenceTransformer.encode: tests/benchmark/bench_encoding.py.

The same folder and texts, each side with its best settings: ours gets its best number of tokens a
pass, the rival its best batch size, in float32 and, where the machine has instructions for it, in
bfloat16, by autocast or with its weights in it. Ours runs plain and, where torch.compile can build
kernels, compiled. On a GPU the decoder has the shape of Qwen3-0.6B. All run in turn; the vectors
are compared first. Ratios above 1 mean that ours is faster.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder.compilation import compile_blocks, has_compiler
from model.encoder.encoder import Encoder
from model.encoder.precision import Precision, decoder_autocast, fast_precision
from tests.benchmark.workload import (
    SETS,
    SIZES,
    default_size,
    lognormal_pairs,
    make_model,
    the_device,
)

ROUNDS = 3
OUR_TOKENS = {"cpu": (2048, 4096, 16384), "cuda": (16384, 65536)}
THEIR_BATCHES = {"cpu": (16, 32, 128), "cuda": (32, 128, 512)}

logger = logging.getLogger("bench_encoding")


def main() -> None:
    """Print texts per second and ratios for each set of texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--size", choices=SIZES, default=default_size(the_device()))
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    for name in SETS:
        compare(name, chosen.texts, chosen.size)


def compare(name: str, count: int, size: str) -> None:
    """Time both on one set of texts and print the table."""
    pairs = lognormal_pairs(name, count // 2)
    texts = [text for pair in pairs for text in pair]
    device = the_device()
    precision = fast_precision(device)
    is_gpu = device.type == "cuda"
    can_compile = is_gpu or has_compiler()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, pairs, size)
        encoders = [Encoder.load(folder, device=device) for _ in range(1 + can_compile)]
        rivals = [SentenceTransformer(str(folder), device=str(device)) for _ in range(2)]
    check_equal_vectors(
        encoders[0].encode(texts[:200], batch_tokens=4096),
        rivals[0].encode(texts[:200], show_progress_bar=False),
    )
    ways: dict[str, Callable[[], np.ndarray]] = {}
    for kind, encoder in zip(("ours", "ours, compiled"), encoders, strict=False):
        for tokens in OUR_TOKENS[device.type]:
            ways[f"{kind}, {tokens} tokens"] = partial(
                encoder.encode, texts, batch_tokens=tokens, precision=precision
            )
    if can_compile:
        compile_blocks(encoders[1].backbone)
    kinds: dict[str, tuple[SentenceTransformer, Precision]] = {}
    if not is_gpu:
        kinds["fp32"] = rivals[0], "fp32"
    if precision == "bf16":
        kinds["bf16 weights"] = rivals[1].bfloat16(), "fp32"
        kinds["bf16"] = rivals[0], "bf16"
    for label, (rival, their_precision) in kinds.items():
        for batch in THEIR_BATCHES[device.type]:
            ways[f"{label}, batch {batch}"] = partial(
                encode_theirs, rival, texts, batch, their_precision
            )
    report(name, len(texts), time_in_turn(ways))


def encode_theirs(
    rival: SentenceTransformer, texts: list[str], batch: int, precision: Precision
) -> np.ndarray:
    """Vectors of the rival under autocast of this type."""
    with decoder_autocast(rival.device, precision):
        return rival.encode(texts, batch_size=batch, show_progress_bar=False)


def time_in_turn(ways: dict[str, Callable[[], np.ndarray]]) -> dict[str, float]:
    """Median seconds of each way, all run in turn, after one round that compiles and warms up."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[way].append(time.perf_counter() - started)
    return {way: statistics.median(times) for way, times in seconds.items()}


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
        logger.info("  %-30s %6.0f texts/s  our best %.2fx", way, count / value, value / best)
    logger.info("  our best against its best %.2fx", rival / best)


if __name__ == "__main__":
    main()
