"""CoSENT: cosines of graded pairs must be ordered as their grades.

Shape letters: B = pairs, D = embedding size.
"""

import torch
from torch import Tensor


def cosent(query_BD: Tensor, document_BD: Tensor, score_B: Tensor, temperature: float) -> Tensor:
    """log(1 + sum over pairs i, j with score_i > score_j of exp((cos_j - cos_i) / temperature)).

    Args:
        query_BD: Unit-norm first texts.
        document_BD: Unit-norm second texts.
        score_B: Grades; only their order counts.
        temperature: Divides the cosine; 0.05 is the customary scale of 20.

    Returns:
        Scalar in nats, one value for the batch: it grows with log of the ordered pairs; 0 when all
        grades are equal.

    Source: https://kexue.fm/archives/8847 (CoSENT, Su 2022).
    """
    cosine_B = (query_BD.float() * document_BD.float()).sum(dim=-1) / temperature
    ordered_BB = score_B[:, None] > score_B[None, :]
    margin_BB = (cosine_B[None, :] - cosine_B[:, None]).masked_fill(~ordered_BB, -torch.inf)
    return torch.logsumexp(torch.cat([cosine_B.new_zeros(1), margin_BB.flatten()]), dim=0)
