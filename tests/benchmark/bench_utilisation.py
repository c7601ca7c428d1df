"""How near a training step comes to the machine: python tests/benchmark/bench_utilisation.py.

Model FLOPs utilisation: the arithmetic that the non-padding tokens of a step need (6 per weight and
token, attention and embeddings left out), over the rate at which this machine multiplies matrices
of the very same shapes alone, in the same type. Below 1 by what attention, norms, activations,
the optimiser and the loss cost.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch

import tasks  # noqa: F401 - sets OpenMP's policy before torch starts its threads
from model.encoder import Encoder
from model.precision import Precision, fast_precision
from tests.benchmark.workload import SETS, SIZE, Ours, lognormal_pairs, make_model

ROUNDS = 3
PRODUCT_S = 0.5
"""Seconds for which each shape is multiplied."""

logger = logging.getLogger("bench_utilisation")


def matrix_shapes() -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of one block."""
    hidden, head = SIZE.hidden_size, SIZE.head_dim
    heads, key_value = SIZE.num_heads * head, SIZE.num_key_value_heads * head
    wide = SIZE.intermediate_size
    attention = [(hidden, heads), (hidden, key_value), (hidden, key_value), (heads, hidden)]
    return [*attention, (hidden, wide), (hidden, wide), (wide, hidden)]


def rate_alone(tokens: int, device: torch.device, precision: Precision) -> float:
    """FLOP/s of the products of one block, each shape weighted by its arithmetic."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    operations = seconds = 0.0
    for inputs, outputs in matrix_shapes():
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
    while time.perf_counter() - started < PRODUCT_S:
        torch.nn.functional.linear(state, weight)
        count += 1
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
    batch = parser.parse_args().batch
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = fast_precision(device)
    for name in SETS:
        pairs = lognormal_pairs(name, batch)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            make_model(folder, pairs)
            encoder = Encoder.load(folder, device=device)
        report(name, encoder, pairs, precision)


def report(name: str, encoder: Encoder, pairs: list[tuple[str, str]], precision: Precision) -> None:
    """Time steps and products in turn; print medians and their ratio."""
    trainer = Ours(encoder, [pairs], precision).trainer()
    tokens = trainer.step(1).tokens
    weights = SIZE.num_layers * sum(inputs * outputs for inputs, outputs in matrix_shapes())
    steps, alone = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        trainer.step(1)
        steps.append(time.perf_counter() - started)
        alone.append(rate_alone(tokens, encoder.device, precision))
    rate, floor = 6.0 * weights * tokens / statistics.median(steps), statistics.median(alone)
    logger.info(
        "%s, %s: %d tokens a step, %.0f GFLOP/s of %.0f that the products reach alone: %.0f %%",
        *(name, precision, tokens, rate / 1e9, floor / 1e9, 100 * rate / floor),
    )


if __name__ == "__main__":
    main()
