"""Spread-out regulariser: embeddings of unrelated texts should be orthogonal.

Shape letters: B = rows, R = rows of a slice, D = embedding size.
"""

from torch import Tensor


def spread_out(query_BD: Tensor, positive_BD: Tensor, rows: slice) -> Tensor:
    """Squared cosines of the rows with every other query, and of their positives likewise.

    Args:
        query_BD: Unit-norm queries.
        positive_BD: Unit-norm positives.
        rows: Slice of rows.

    Returns:
        Scalar: sum over the rows of the mean square over the other B - 1 rows, both sides added;
        divide by B for the mean. 0 for a batch of one row.

    Source: EmbeddingGemma, arXiv:2509.20354, after Zhang et al. 2017, arXiv:1708.06320.
    """
    others = max(1, len(query_BD) - 1)
    total = query_BD.new_zeros((), dtype=query_BD.float().dtype)
    for side_BD in (query_BD.float(), positive_BD.float()):
        square_RB = (side_BD[rows] @ side_BD.T).square()
        own = (side_BD[rows] * side_BD[rows]).sum(dim=-1).square().sum()
        total = total + (square_RB.sum() - own) / others
    return total
