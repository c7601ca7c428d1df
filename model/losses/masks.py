"""Which documents of a batch are negatives of which query: decided by text, never by model score.

Texts are compared by 64-bit hash, so the answer does not depend on embeddings, precision or
dropout, and costs no sampler that avoids duplicates.

Shape letters: B = queries, N = documents (B positives, then hard negatives), P = known pairs.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """64-bit hash of each text, int64; letter case and runs of white space do not count."""
    digests = (
        hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype=np.int64)


@dataclass(frozen=True)
class BatchTexts:
    """Hashes of a batch: what is needed to tell a negative from a positive in disguise."""

    queries: np.ndarray
    """(B,)"""
    documents: np.ndarray
    """(N,); document i < B is the positive of query i, the rest are hard negatives."""
    owners: np.ndarray
    """(N,); row whose positive or hard negative the document is."""
    known_queries: np.ndarray
    """(P,); query of each known positive."""
    known_positives: np.ndarray
    """(P,); every positive of every row of the batch, also those that were not drawn."""


@dataclass(frozen=True)
class CandidateMask:
    """Allowed documents of each query, and the count of what was allowed and what was not."""

    allowed: np.ndarray
    """(B, N) bool: True for the positive (i, i) and for each negative that counts."""
    in_batch_negatives: int
    """Allowed (query, document of another row) pairs."""
    hard_negatives: int
    """Allowed (query, own hard negative) pairs."""
    masked_positives: int
    """Candidates dropped since the query, or a positive of the query, has the same text."""
    masked_repeats: int
    """Candidates dropped since the query already has a negative of the same text."""

    @property
    def masked_share(self) -> float:
        """Dropped candidates over all candidates, 0 where there is none."""
        dropped = self.masked_positives + self.masked_repeats
        return dropped / max(1, dropped + self.in_batch_negatives + self.hard_negatives)


def candidate_mask(texts: BatchTexts, *, in_batch: bool) -> CandidateMask:
    """Negatives of each query: its own hard negatives and, with `in_batch`, all other documents.

    A candidate is dropped when its text is the query, or any known positive of the query or of
    another row with the same query, and when an earlier candidate has the same text: a text
    counts once, so repeating a document in a batch does not change the loss. The positive itself
    is never dropped.
    """
    rows = np.arange(len(texts.queries))
    own_BN = rows[:, None] == texts.owners[None, :]
    own_BN[rows, rows] = False
    candidate_BN = own_BN.copy()
    if in_batch:
        candidate_BN |= rows[:, None] != texts.owners[None, :]
    positive_BN = _texts_of_positives(texts) & candidate_BN
    repeat_BN = candidate_BN & ~positive_BN & ~_first_of_its_text(texts, in_batch=in_batch)
    negative_BN = candidate_BN & ~positive_BN & ~repeat_BN
    allowed_BN = negative_BN.copy()
    allowed_BN[rows, rows] = True
    num_own = int((negative_BN & own_BN).sum())
    return CandidateMask(
        allowed=allowed_BN,
        in_batch_negatives=int(negative_BN.sum()) - num_own,
        hard_negatives=num_own,
        masked_positives=int(positive_BN.sum()),
        masked_repeats=int(repeat_BN.sum()),
    )


def _texts_of_positives(texts: BatchTexts) -> np.ndarray:
    """(B, N) bool: document j reads like query i or like a positive known for query i's text."""
    query_U, query_of_row_B = np.unique(texts.queries, return_inverse=True)
    document_T, text_of_N = np.unique(texts.documents, return_inverse=True)
    known_UT = query_U[:, None] == document_T[None, :]
    present = np.isin(texts.known_positives, document_T)
    known_UT[
        np.searchsorted(query_U, texts.known_queries[present]),
        np.searchsorted(document_T, texts.known_positives[present]),
    ] = True
    return known_UT[query_of_row_B][:, text_of_N]


def _first_of_its_text(texts: BatchTexts, *, in_batch: bool) -> np.ndarray:
    """(N,) bool: no earlier candidate has this text; among the row's own ones without in-batch."""
    num_rows, num_documents = len(texts.queries), len(texts.documents)
    first_N = np.zeros(num_documents, dtype=bool)
    if in_batch:
        first_N[np.unique(texts.documents, return_index=True)[1]] = True
        return first_N
    own = np.stack([texts.owners[num_rows:], texts.documents[num_rows:]])
    first_N[num_rows + np.unique(own, axis=1, return_index=True)[1]] = True
    return first_N
