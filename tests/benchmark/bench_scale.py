"""What a large batch costs: python tests/benchmark/bench_scale.py.

A batch of 16,384 pairs by GradCache beside a batch of 512 in one pass: seconds per pair, and peak
memory of the process, each taken in a process of its own. The law of the matter: a second forward
pass makes 8 of 6 units of arithmetic, 1.33x. Also the seconds from a loaded model to the end of the
first step, compiling included: on a GPU the blocks, of the shape of Qwen3-0.6B, are compiled.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder.encoder import Encoder
from model.encoder.precision import fast_precision
from tasks.machine.heap import keep_one_heap
from tests.benchmark.workload import (
    SIZES,
    Ours,
    default_size,
    lognormal_pairs,
    make_model,
    the_device,
)

SMALL_BATCH, SMALL_STEPS, LARGE_STEPS = 512, 4, 2
MOST_TOKENS = 10**6
"""More than the small batch has: it is taken in one pass."""
TEXTS = "short"
MODEL_PAIRS = 512

logger = logging.getLogger("bench_scale")


def measure(folder: Path, batch: int, steps: int, micro_batch_tokens: int) -> dict[str, float]:
    """Seconds per pair after the first step, seconds to its end, peak memory, in this process."""
    device = the_device()
    if device.type == "cpu":
        keep_one_heap()  # as a stage does
    encoder = Encoder.load(folder, device=device)
    pairs = lognormal_pairs(TEXTS, batch * steps)
    batches = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
    is_gpu = device.type == "cuda"
    precision = fast_precision(device)
    started = time.perf_counter()
    with Ours(encoder, batches, precision, micro_batch_tokens, is_gpu).training() as trainer:
        record = trainer.step(1)
        first = time.perf_counter() - started
        started = time.perf_counter()
        for step in range(2, steps + 1):
            trainer.step(step)
        seconds = (time.perf_counter() - started) / (steps - 1)
    peak = (
        torch.cuda.max_memory_allocated()
        if is_gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {
        "pairs_per_second": batch / seconds,
        "first_step_s": first,
        "peak_bytes": peak,
        "forward_passes": record.micro_batches,
        "tokens": record.tokens,
    }


def in_own_process(folder: Path, *numbers: int) -> dict[str, float]:
    """The same, measured in a new process."""
    command = [sys.executable, __file__, "--measure", str(folder), *map(str, numbers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print both measurements and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--size", choices=SIZES, default=default_size(the_device()))
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        folder, *numbers = chosen.measure
        sys.stdout.write(json.dumps(measure(Path(folder), *map(int, numbers))))
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder, lognormal_pairs(TEXTS, MODEL_PAIRS), chosen.size)
        small = in_own_process(folder, SMALL_BATCH, SMALL_STEPS, MOST_TOKENS)
        # both hold the graph of as many tokens
        large = in_own_process(folder, chosen.batch, LARGE_STEPS, int(small["tokens"]))
    for batch, found in ((SMALL_BATCH, small), (chosen.batch, large)):
        logger.info(
            "batch %6d: %5.0f pairs/s, %.2f GB, %d forward passes, %.1f s to the first step",
            batch,
            found["pairs_per_second"],
            found["peak_bytes"] / 1e9,
            found["forward_passes"],
            found["first_step_s"],
        )
    logger.info(
        "per pair %.2fx, memory %.2fx",
        small["pairs_per_second"] / large["pairs_per_second"],
        large["peak_bytes"] / small["peak_bytes"],
    )


if __name__ == "__main__":
    main()
