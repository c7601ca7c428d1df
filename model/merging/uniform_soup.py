"""The mean of several models, weight by weight (model soup)."""

from collections.abc import Sequence

from torch import Tensor

from model.merging.weights import SavedWeights, TensorSource, require_alike


def uniform_soup(
    checkpoints: Sequence[SavedWeights], weights: Sequence[float] | None = None
) -> TensorSource:
    """Mean of the models; with `weights`, their weighted mean.

    Computed as the first model plus weighted differences from it, so that the soup of equal models
    is that model, bit for bit.

    Args:
        checkpoints: Models of one architecture.
        weights: One per model, not negative, of any sum; None weighs all alike.

    Raises:
        ValueError: There is no model, tensors differ in name or shape, or a weight is wrong.

    Source: Wortsman et al. 2022, arXiv:2203.05482.
    """
    if not checkpoints:
        raise ValueError("a soup needs at least one model, got none")
    weights = [1.0] * len(checkpoints) if weights is None else list(weights)
    if len(weights) != len(checkpoints) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(
            f"a soup of {len(checkpoints)} models needs as many weights, none negative, "
            f"of positive sum; got {weights}"
        )
    require_alike(checkpoints)
    shares = [weight / sum(weights) for weight in weights]

    def merged(name: str) -> Tensor:
        first = checkpoints[0].wide(name)
        total = first.clone()
        for checkpoint, share in zip(checkpoints[1:], shares[1:], strict=True):
            total.add_(checkpoint.wide(name) - first, alpha=share)
        return total

    return merged
