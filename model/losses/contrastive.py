"""Contrastive loss over selectable terms: a row's positive against the candidates of a softmax.

Every term of every row can be computed alone, so a batch of any size is scored in slices of rows,
on one process or many, and the slices add up to the loss of the whole.

Shape letters: B = rows, H = hard negatives of all rows, R = rows of a slice, X = candidates of a
term, Q = remembered documents, D = embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from model.losses.terms import HARD_NEGATIVE_TERMS, Term


@dataclass(frozen=True)
class ContrastiveSettings:
    """Which candidates stand in which softmax; see `presets` for the published choices."""

    softmaxes: tuple[tuple[Term, ...], ...]
    """Terms of each softmax; the losses of several softmaxes are added."""
    temperature: float
    """Divides the cosine."""
    hardness: Mapping[Term, float] = field(default_factory=dict)
    """Added to the logits of a term: this factor times the cosine, without gradient and without
    the temperature (EmbeddingGemma: 5 on own hard negatives)."""


@dataclass(frozen=True)
class Similarities:
    """Cosines of a slice of rows with their candidates, computed when asked for, in float32.

    A bfloat16 cosine near 0.9 divided by 0.01 moves in steps of 0.4.
    """

    query_BD: Tensor
    """Unit norm."""
    positive_BD: Tensor
    """Unit norm, in the order of the queries."""
    negative_HD: Tensor
    """Unit norm."""
    rows: slice
    memory_QD: Tensor | None = None
    """Unit norm, without gradient; needed by the term memory alone."""

    def positive(self) -> Tensor:
        """Cosine of each query with its positive, (R,)."""
        return (self.query_RD * self.positive_RD).sum(dim=-1)

    def of(self, term: Term) -> Tensor:
        """Cosines with the candidates of a term, (R, X)."""
        anchor_RD = self.positive_RD if term.startswith("document") else self.query_RD
        if term in {"queries", "document_queries"}:
            other_XD = self.query_BD
        elif term in HARD_NEGATIVE_TERMS:
            other_XD = self.negative_HD
        elif term == "memory":
            assert self.memory_QD is not None  # noqa: S101 - the objective adds both or neither
            other_XD = self.memory_QD
        else:
            other_XD = self.positive_BD
        return anchor_RD @ other_XD.float().T

    # the gradient of a slice is as large as what it was cut from, so each is cut once

    @cached_property
    def query_RD(self) -> Tensor:  # noqa: N802 - named by its shape
        """Queries of the slice, float32."""
        return self.query_BD[self.rows].float()

    @cached_property
    def positive_RD(self) -> Tensor:  # noqa: N802 - named by its shape
        """Their positives, float32."""
        return self.positive_BD[self.rows].float()


def contrastive_loss(
    similarities: Similarities,
    allowed: Sequence[Mapping[Term, Tensor]],
    settings: ContrastiveSettings,
) -> Tensor:
    """Cross-entropy of each row's positive against its allowed candidates, summed over the rows.

    Args:
        similarities: Of the slice of rows.
        allowed: For each softmax, (R, X) bool per term: True where a candidate counts.
        settings: Terms, temperature, hardness.

    Returns:
        Scalar in nats; divide by B for the mean. A row without candidates adds 0.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4; terms as in Qwen3 Embedding,
    arXiv:2506.05176, eq. 2.
    """
    positive_R = similarities.positive() / settings.temperature
    total = positive_R.new_zeros(())
    for terms, allowed_of in zip(settings.softmaxes, allowed, strict=True):
        logits = [positive_R[:, None]]
        for term in terms:
            cosine_RX = similarities.of(term)
            logits_RX = cosine_RX / settings.temperature
            alpha = settings.hardness.get(term, 0.0)
            if alpha:
                logits_RX = logits_RX + alpha * cosine_RX.detach()
            logits.append(logits_RX.masked_fill(~allowed_of[term], -torch.inf))
        normaliser_R = torch.logsumexp(torch.cat(logits, dim=1), dim=1)
        total = total + (normaliser_R - positive_R).sum()
    return total
