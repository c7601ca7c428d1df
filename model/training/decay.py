"""Which weights decay."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def decay_groups(
    parameters: Iterable[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Decay for matrices, none for norms, biases and other vectors.

    Sharded weights have groups of their own: a fused step takes one kind.
    """
    parameters = list(parameters)
    groups: list[dict[str, Any]] = []
    for is_sharded in sorted({isinstance(p, DTensor) for p in parameters}):
        own = [p for p in parameters if isinstance(p, DTensor) == is_sharded]
        matrices = [p for p in own if p.ndim >= 2]  # noqa: PLR2004 - two axes make a matrix
        vectors = [p for p in own if p.ndim < 2]  # noqa: PLR2004
        groups.append({"params": matrices, "weight_decay": weight_decay})
        groups.append({"params": vectors, "weight_decay": 0.0})
    return groups
