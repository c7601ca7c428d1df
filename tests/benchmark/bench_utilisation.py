"""How near a training step comes to the machine: python tests/benchmark/bench_utilisation.py.

Model FLOPs utilisation: the arithmetic that the non-padding tokens of a step need (6 per weight and
token, attention and embeddings left out), over the rate at which this machine multiplies matrices
of the very same shapes alone, in the same type. Below 1 by what attention, norms, activations,
the optimiser and the loss cost. Blocks run plain and, where torch.compile can build kernels,
compiled. On a GPU, with a decoder of the shape of Qwen3-0.6B (or --size 3b), also over the rate of
one product of 8192 x 8192 x 8192.
"""

import argparse
import logging
import statistics
import time

import torch

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.backbone.scratch import DecoderSize
from model.encoder.compilation import has_compiler
from model.encoder.precision import Precision, fast_precision
from tests.benchmark.workload import (
    SETS,
    SIZES,
    Ours,
    default_size,
    lognormal_pairs,
    new_encoder,
    the_device,
)

ROUNDS = 3
PRODUCT_S = {"cpu": 0.5, "cuda": 0.05}
"""Seconds for which each shape is multiplied."""
PEAK_EDGE = 8192

logger = logging.getLogger("bench_utilisation")


def matrix_shapes(size: DecoderSize) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of one block."""
    hidden, head = size.hidden_size, size.head_dim
    heads, key_value = size.num_heads * head, size.num_key_value_heads * head
    wide = size.intermediate_size
    attention = [(hidden, heads), (hidden, key_value), (hidden, key_value), (heads, hidden)]
    return [*attention, (hidden, wide), (hidden, wide), (wide, hidden)]


def rate_alone(
    tokens: int, shapes: list[tuple[int, int]], device: torch.device, precision: Precision
) -> float:
    """FLOP/s of the products, each shape weighted by its arithmetic."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    operations = seconds = 0.0
    for inputs, outputs in shapes:
        state = torch.randn(tokens, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        operations += 2.0 * tokens * inputs * outputs
        seconds += seconds_of_product(state, weight)
    return operations / seconds


def seconds_of_product(state: torch.Tensor, weight: torch.Tensor) -> float:
    """Mean seconds of one product, many in a row."""
    torch.nn.functional.linear(state, weight)
    synchronize(state.device)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < PRODUCT_S[state.device.type]:
        for _ in range(10):
            torch.nn.functional.linear(state, weight)
        count += 10
        synchronize(state.device)
    return (time.perf_counter() - started) / count


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print both rates and their ratio for each set of texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", choices=SIZES, default=default_size(the_device()))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--micro-batch-tokens", type=int, default=32768)
    parser.add_argument("--compiled-only", action="store_true", help="on a GPU")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    forms = [True] if chosen.compiled_only else [False, True]
    for name in chosen.sets:
        for is_compiled in forms if the_device().type == "cuda" or has_compiler() else [False]:
            report(name, chosen, is_compiled=is_compiled)


def report(name: str, chosen: argparse.Namespace, *, is_compiled: bool) -> None:
    """Time steps and products in turn; print medians and their ratio."""
    device, size = the_device(), SIZES[chosen.size]
    precision = fast_precision(device)
    pairs = lognormal_pairs(name, chosen.batch)
    encoder = new_encoder(chosen.size, pairs, device)
    shapes = matrix_shapes(size)
    weights = size.num_layers * sum(inputs * outputs for inputs, outputs in shapes)
    steps, alone, peak = [], [], []
    ours = Ours(encoder, [pairs], precision, chosen.micro_batch_tokens, is_compiled)
    with ours.training() as trainer:
        started = time.perf_counter()
        record = trainer.step(1)
        first = time.perf_counter() - started
        for _ in range(ROUNDS):
            synchronize(device)
            started = time.perf_counter()
            record = trainer.step(1)
            synchronize(device)
            steps.append(time.perf_counter() - started)
            alone.append(rate_alone(record.tokens, shapes, device, precision))
            if device.type == "cuda":
                square = [(PEAK_EDGE, PEAK_EDGE)]
                peak.append(rate_alone(PEAK_EDGE, square, device, precision))
    rate, floor = 6.0 * weights * record.tokens / statistics.median(steps), statistics.median(alone)
    logger.info(
        "%s, %s, %s%s: %d tokens a step in %d passes, first step %.1f s, then %.3f s: %.0f GFLOP/s "
        "of %.0f that the products reach alone: %.0f %%",
        *(name, chosen.size, precision, ", compiled" if is_compiled else "", record.tokens),
        *(record.micro_batches, first, statistics.median(steps)),
        *(rate / 1e9, floor / 1e9, 100 * rate / floor),
    )
    if peak:
        most = statistics.median(peak)
        memory = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        logger.info(
            "  of the peak, %.0f GFLOP/s: %.0f %%; %.1f GB at most",
            *(most / 1e9, 100 * rate / most, memory),
        )


if __name__ == "__main__":
    main()
