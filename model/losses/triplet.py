"""Triplet loss: a hard negative should be further away than the positive, by a margin.

Shape letters: R = rows, K = hard negatives of a row.
"""

from torch import Tensor


def triplet(positive_R: Tensor, negative_RK: Tensor, counts_RK: Tensor, margin: float) -> Tensor:
    """Hinge of each row's hard negatives, mean over them, summed over the rows.

    Args:
        positive_R: Cosine of each query with its positive.
        negative_RK: Cosines with the row's hard negatives.
        counts_RK: True where there is a negative that counts.
        margin: By how much the cosine distance, 1 - cosine, of the negative should be larger.

    Returns:
        Scalar, in units of cosine distance; divide by B for the mean. A row without negatives
        adds 0.

    Source: Schroff et al. 2015, arXiv:1503.03832, eq. 1, with cosine distance.
    """
    hinge_RK = (negative_RK - positive_R[:, None] + margin).relu() * counts_RK
    return (hinge_RK.sum(dim=1) / counts_RK.sum(dim=1).clamp(min=1)).sum()
