"""Matryoshka: the same loss on prefixes of the embeddings, so that a prefix is an embedding too.

Shape letters: M = texts of a batch, D = embedding size.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Prefix = TypeVar("Prefix")

NO_WEIGHTS: Mapping[int, float] = MappingProxyType({})


def matryoshka_sizes(embedding_size: int, prefix_sizes: Iterable[int]) -> list[int]:
    """The full size and the prefix sizes, each once, largest first.

    Raises:
        ValueError: A prefix is longer than the embedding.
    """
    sizes = sorted({embedding_size, *prefix_sizes}, reverse=True)
    if sizes[0] > embedding_size:
        raise ValueError(
            f"Matryoshka size {sizes[0]} exceeds the embedding size {embedding_size}: remove it"
        )
    return sizes


def check_weights(weights: Mapping[int, float], sizes: list[int]) -> None:
    """Make sure that every weight is of a size that is trained.

    Raises:
        ValueError: One is not.
    """
    strangers = sorted(set(weights) - set(sizes))
    if strangers:
        raise ValueError(
            f"matryoshka_weights names the sizes {strangers}, but trained are {sizes}: correct "
            "them, or add them to matryoshka_dims"
        )


def unit_prefixes(embedding_MD: Tensor, sizes: Iterable[int]) -> dict[int, Tensor]:
    """The first numbers of each embedding, (M, size) for each size, scaled back to unit norm."""
    return {size: F.normalize(embedding_MD[:, :size], dim=-1) for size in sizes}


def matryoshka_mean(
    loss: Callable[[Prefix], Tensor],
    prefixes: Mapping[int, Prefix],
    weights: Mapping[int, float] = NO_WEIGHTS,
) -> Tensor:
    """Mean of `loss` over the prefixes of all sizes, in whatever form it takes them.

    `weights` are factors on the losses of single sizes, 1 for those not named. The mean, not the
    sum, keeps the learning rate independent of the number of sizes. Masks belong to `loss` and are
    thereby the same at every size.

    Source: Kusupati et al. 2022, arXiv:2205.13147, eq. 1 (a sum there).
    """
    losses = [weights.get(size, 1.0) * loss(prefix) for size, prefix in prefixes.items()]
    return torch.stack(losses).mean()
