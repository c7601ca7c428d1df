"""Pearson loss: cosines of graded pairs should rise linearly with their grades.

Shape letters: B = pairs, D = embedding size.
"""

import torch
from torch import Tensor

EPSILON = 1e-8


def pearson(query_BD: Tensor, document_BD: Tensor, score_B: Tensor) -> Tensor:
    """One minus the Pearson correlation of cosines and grades.

    Args:
        query_BD: Unit-norm first texts.
        document_BD: Unit-norm second texts.
        score_B: Grades.

    Returns:
        Scalar in [0, 2]; 1 when all grades, or all cosines, are equal.
    """
    cosine_B = (query_BD.float() * document_BD.float()).sum(dim=-1)
    cosine_B = cosine_B - cosine_B.mean()
    score_B = score_B.float() - score_B.float().mean()
    size = torch.linalg.norm(cosine_B) * torch.linalg.norm(score_B)
    return 1.0 - (cosine_B @ score_B) / (size + EPSILON)
