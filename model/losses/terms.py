"""The names of what a row may be compared with in a contrastive loss."""

from typing import Literal

Term = Literal[
    "own_negatives",
    "other_positives",
    "other_negatives",
    "queries",
    "documents",
    "document_queries",
    "memory",
]
"""Sets of candidates for row i, beside its positive:

own_negatives      query i with the hard negatives of row i
other_positives    query i with the positives of other rows
other_negatives    query i with the hard negatives of other rows
queries            query i with the queries of other rows
documents          positive i with the positives of other rows
document_queries   positive i with the queries of other rows
memory             query i with documents of earlier batches, which get no gradient
"""
DOCUMENT_TERMS: tuple[Term, ...] = (
    "own_negatives",
    "other_positives",
    "other_negatives",
    "memory",
)
"""Terms whose candidates are documents, seen from the query."""
HARD_NEGATIVE_TERMS: tuple[Term, ...] = ("own_negatives", "other_negatives")
"""Terms whose candidates are hard negatives, N - B of them."""
EXPLICIT_TERMS: tuple[Term, ...] = ("own_negatives",)
"""Terms whose negatives somebody chose for the row; all others are in-batch negatives."""
