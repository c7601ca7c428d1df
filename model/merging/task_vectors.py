"""Task vectors V_i = theta_i - theta_0 over whole models, never held in memory together.

All that a merge on a sphere needs globally are their dot products; the rest is a weighted sum,
formed tensor by tensor.

Shape letters: N = task vectors, C = numbers of a tensor, or of a chunk of it.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from model.merging.weights import SavedWeights, TensorSource, require_alike

# Numbers taken to float64 at a time.
CHUNK = 2**22


class TaskVectors:
    """Differences of models from one base.

    Attributes:
        names: The floating-point tensors, which the vectors are made of.
    """

    def __init__(self, base: SavedWeights, variants: Sequence[SavedWeights]) -> None:
        """Take the differences of `variants` from `base`.

        Raises:
            ValueError: There is no variant, or tensors differ in name or shape.
        """
        if not variants:
            raise ValueError("task vectors need at least one variant, got none")
        require_alike([base, *variants])
        self._base = base
        self._variants = list(variants)
        self.names = [name for name in base.names if base.tensor(name).is_floating_point()]

    def gram(self) -> Tensor:
        """Dot products of all pairs, each over all tensors as one vector: (N, N), float64.

        Raises:
            ValueError: A variant equals the base, so that it has no direction.
        """
        gram_NN = torch.zeros((len(self._variants),) * 2, dtype=torch.float64)
        for name in self.names:
            for chunk_NC in self._chunks(name):
                gram_NN += chunk_NC @ chunk_NC.T
        for variant, square in zip(self._variants, gram_NN.diagonal().tolist(), strict=True):
            if square == 0:
                raise ValueError(
                    f"{variant.folder} equals {self._base.folder}: there is nothing to merge; "
                    "leave this variant out or train it"
                )
        return gram_NN

    def _chunks(self, name: str) -> Iterator[Tensor]:
        base = self._base.tensor(name).flatten()
        flat = [variant.tensor(name).flatten() for variant in self._variants]
        for start in range(0, len(base), CHUNK):
            part = base[start : start + CHUNK].double()
            yield torch.stack([each[start : start + CHUNK].double() - part for each in flat])

    def at(self, coefficient_N: Sequence[float]) -> TensorSource:
        """theta_0 + sum of c_i V_i, tensor by tensor, in float32 or wider."""

        def position(name: str) -> Tensor:
            base = self._base.wide(name)
            total = base.clone()
            for variant, coefficient in zip(self._variants, coefficient_N, strict=True):
                total.add_(variant.wide(name) - base, alpha=coefficient)
            return total

        return position

    def along(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Dot product of a gradient, given by tensor name, with each V_i: (N,), float64."""
        slope_N = torch.zeros(len(self._variants), dtype=torch.float64)
        for name, gradient in gradients.items():
            base = self._base.wide(name)
            gradient_C = gradient.to(base).flatten()
            for number, variant in enumerate(self._variants):
                difference_C = (variant.wide(name) - base).flatten()
                slope_N[number] += torch.dot(difference_C, gradient_C).double()
        return slope_N
