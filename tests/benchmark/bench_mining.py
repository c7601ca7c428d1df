"""Search time of mining beside two peers, in one run: python tests/benchmark/bench_mining.py.

Peers: scikit-learn's brute-force neighbours, and the full matrix product with numpy's partition.
Ratios above 1 mean that ours is faster. Time is CPU time of one thread, which does not depend on
what else the machine does; set OMP_NUM_THREADS=1 to hold scikit-learn and numpy to it.
"""

import argparse
import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import normalize

from model.mining import TILE_BYTES, top_k

REPEATS = 3

logger = logging.getLogger("bench_mining")


def best_seconds(run: Callable[[], object]) -> float:
    """Least CPU time of a few runs."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def partitioned(query: np.ndarray, document: np.ndarray, k: int) -> np.ndarray:
    """Nearest documents through the whole Q x N matrix."""
    score = query @ document.T
    found = np.argpartition(-score, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(score, found, 1), axis=1)
    return np.take_along_axis(found, order, 1)


def main() -> None:
    """Print seconds and ratios for the given sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--k", type=int, default=50)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    query, document = (
        normalize(torch.randn(count, chosen.size, generator=generator), dim=1)
        for count in (chosen.queries, chosen.documents)
    )
    neighbours = NearestNeighbors(n_neighbors=chosen.k, algorithm="brute").fit(document.numpy())
    runs: dict[str, Callable[[], object]] = {
        "tiled top-k": lambda: top_k(query, document, chosen.k),
        "scikit-learn": lambda: neighbours.kneighbors(query.numpy()),
        "numpy partition": lambda: partitioned(query.numpy(), document.numpy(), chosen.k),
    }
    seconds = {name: best_seconds(run) for name, run in runs.items()}
    for name, value in seconds.items():
        logger.info("%-16s %7.2f s, ours %.2fx", name, value, value / seconds["tiled top-k"])
    matrix = 4 * chosen.queries * chosen.documents / 2**20
    logger.info("full matrix %.0f MiB, tile %.0f MiB", matrix, TILE_BYTES / 2**20)


if __name__ == "__main__":
    main()
