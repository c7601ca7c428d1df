"""A graph cut in two, so that many small losses pass through its first half once.

Each slice of rows of a large batch has a loss of its own, and its graph is freed before the next.
What all of them share, prefixes of all embeddings scaled to unit norm, would be gone through
backwards by each slice; cut off, its gradient is gathered and handed on once.
"""

import torch
from torch import Tensor


class GraphCut:
    """Tensors behind which the graph begins anew."""

    def __init__(self) -> None:
        """Begin without any."""
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def off(self, tensor: Tensor) -> Tensor:
        """The same numbers as a leaf, which gathers its gradient."""
        leaf = tensor.detach().requires_grad_()
        self._pairs.append((tensor, leaf))
        return leaf

    def hand_on(self) -> None:
        """Take the gathered gradients through the graph before the cut, once."""
        reached = [(tensor, leaf.grad) for tensor, leaf in self._pairs if leaf.grad is not None]
        if reached:
            tensors, gradients = zip(*reached, strict=True)
            torch.autograd.backward(tensors, gradients)
