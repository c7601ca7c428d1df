"""How good a ranking or an order of similarities is, on rows that no benchmark contains.

Shape letters: Q = queries, K = retrieved documents.
"""

import math
from collections.abc import Sequence

import numpy as np


def mean_ndcg(retrieved_QK: Sequence[Sequence[int]], relevant: Sequence[set[int]]) -> float:
    """Mean over queries of DCG / ideal DCG with binary relevance and gain 1 / log2(rank + 1).

    Args:
        retrieved_QK: Documents found for each query, best first; their number is the cutoff.
        relevant: Relevant documents of each query, at least one.
    """
    total = 0.0
    for found, wanted in zip(retrieved_QK, relevant, strict=True):
        gains = [1 / math.log2(place + 2) for place in range(len(found))]
        gained = sum(gain for gain, number in zip(gains, found, strict=True) if number in wanted)
        total += gained / sum(gains[: len(wanted)])
    return total / len(relevant)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of the ranks, equal values sharing their mean rank; 0 for a constant."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = math.sqrt(float(centred[0] @ centred[0]) * float(centred[1] @ centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, number, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[number]
