"""The loss of one batch as a function of its embeddings, and what it was made of.

Shape letters: B = queries, N = documents, M = B + N texts, D = embedding size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.losses.cosent import cosent
from model.losses.info_nce import info_nce
from model.losses.masks import candidate_mask
from model.losses.matryoshka import matryoshka_loss
from model.training.batches import Batch


@dataclass(frozen=True)
class Objective:
    """Loss of the batch, with the counts that are logged beside it."""

    loss: Callable[[Tensor], Tensor]
    """Scalar loss of the (M, D) embeddings: queries, then documents."""
    in_batch_negatives: float
    """Documents of other rows in a query's denominator, mean over queries."""
    hard_negatives: float
    """Own hard negatives in a query's denominator, mean over queries."""
    masked_share: float
    """Candidates dropped by the text mask over all candidates."""


def objective_of(
    batch: Batch, *, is_in_batch: bool, temperature: float, sizes: list[int], device: torch.device
) -> Objective:
    """CoSENT for a graded batch, InfoNCE for any other, at every Matryoshka size.

    The mask is made once, from texts, and serves all sizes.
    """
    num_queries = batch.num_queries
    if batch.scores is not None:
        score_B = torch.from_numpy(batch.scores).to(device)

        def graded(query_BD: Tensor, document_ND: Tensor) -> Tensor:
            return cosent(query_BD, document_ND, score_B, temperature)

        return Objective(_at_all_sizes(graded, num_queries, sizes), 0.0, 0.0, 0.0)

    mask = candidate_mask(batch.texts, in_batch=is_in_batch)
    allowed_BN = torch.from_numpy(mask.allowed).to(device)

    def contrastive(query_BD: Tensor, document_ND: Tensor) -> Tensor:
        return info_nce(query_BD, document_ND, allowed_BN, temperature)

    return Objective(
        loss=_at_all_sizes(contrastive, num_queries, sizes),
        in_batch_negatives=mask.in_batch_negatives / num_queries,
        hard_negatives=mask.hard_negatives / num_queries,
        masked_share=mask.masked_share,
    )


def _at_all_sizes(
    loss: Callable[[Tensor, Tensor], Tensor], num_queries: int, sizes: list[int]
) -> Callable[[Tensor], Tensor]:
    def total(embedding_MD: Tensor) -> Tensor:
        query_BD, document_ND = embedding_MD[:num_queries], embedding_MD[num_queries:]
        return matryoshka_loss(loss, query_BD, document_ND, sizes)

    return total
