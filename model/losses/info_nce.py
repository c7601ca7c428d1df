"""InfoNCE on unit-norm embeddings, with the candidates of each query given by a mask.

Shape letters: B = queries, N = documents (B positives, then hard negatives), D = embedding size.
"""

import torch
from torch import Tensor


def info_nce(
    query_BD: Tensor, document_ND: Tensor, allowed_BN: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of each query's positive against its allowed documents.

    Similarities and softmax are float32 whatever the embeddings are: a bfloat16 cosine near 0.9
    divided by 0.01 moves in steps of 0.4.

    Args:
        query_BD: Unit-norm query embeddings.
        document_ND: Unit-norm documents; document i < B is the positive of query i.
        allowed_BN: True where document j stands in the denominator of query i; the positives,
            (i, i), must be True.
        temperature: Divides the cosine; 0.05 puts logits in [-20, 20].

    Returns:
        Mean over queries, scalar, in nats; a query without negatives adds 0.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4.
    """
    logits_BN = query_BD.float() @ document_ND.float().T / temperature
    positive_B = logits_BN.diagonal()
    normaliser_B = torch.logsumexp(logits_BN.masked_fill(~allowed_BN, -torch.inf), dim=1)
    return (normaliser_B - positive_B).mean()
