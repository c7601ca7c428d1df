"""Texts of a batch cut into forward passes by a token budget, longest first."""

import numpy as np

SHORTEST_SHARE = 0.9
"""A text below this share of the longest one opens a new micro-batch, once that one is worth it."""
WORTHWHILE_SHARE = 1 / 32
"""A micro-batch is worth its fixed cost from this share of the token budget on."""


def split_by_tokens(length_M: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Indices of the texts of each micro-batch, longest text first.

    Padded size (texts times the longest) stays within `max_tokens` unless one text alone exceeds
    it. Sorting by length, and a cut where lengths have fallen well below the longest, keep the
    padding small: the longest micro-batch comes first, so memory runs out at once or never.
    """
    order_M = np.argsort(-length_M, kind="stable")
    sorted_M = length_M[order_M].tolist()
    parts: list[np.ndarray] = []
    start = 0
    for position, length in enumerate(sorted_M):
        longest, count = sorted_M[start], position - start
        is_full = count > 0 and (count + 1) * longest > max_tokens
        wastes = (
            count * longest >= WORTHWHILE_SHARE * max_tokens and length < SHORTEST_SHARE * longest
        )
        if is_full or wastes:
            parts.append(order_M[start:position])
            start = position
    parts.append(order_M[start:])
    return parts


def padded_tokens(length_M: np.ndarray, parts: list[np.ndarray]) -> int:
    """Tokens computed over all micro-batches, padding included."""
    return sum(len(part) * int(length_M[part[0]]) for part in parts)
