"""Which texts of a batch are negatives of which row: decided by text, never by model score.

Texts are compared by 64-bit hash, so the answer does not depend on embeddings, precision or
dropout, is the same on every process of a training, and costs no sampler that avoids duplicates.

Shape letters: B = rows, N = documents (B positives, then hard negatives), P = known pairs,
R = rows asked for, Q = remembered documents, X = candidates of a term, L = classes of a row.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.losses.terms import DOCUMENT_TERMS, Term

MASK_REASONS = ("same_text", "same_class", "repeat")


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
    classes: np.ndarray | None = None
    """(B, L), or (B,) for one each: rows that share a class are no negatives of each other, and the
    hard negatives of a row share none with it. Rows with fewer than L repeat one. None where rows
    have none."""
    remembered: np.ndarray | None = None
    """(Q,); documents of earlier batches, newest first; None stands for none."""


@dataclass
class MaskCounts:
    """What became of the candidates of the rows asked for so far."""

    allowed: dict[Term, int] = field(default_factory=dict)
    """Candidates that count as negatives, per term."""
    masked: dict[str, int] = field(default_factory=dict)
    """Candidates dropped, per reason."""

    def add(self, term: Term, allowed: int, masked: dict[str, int]) -> None:
        """Count the candidates of one term."""
        self.allowed[term] = self.allowed.get(term, 0) + allowed
        for reason, number in masked.items():
            self.masked[reason] = self.masked.get(reason, 0) + number

    @property
    def masked_share(self) -> float:
        """Dropped candidates over all candidates, 0 where there is none."""
        dropped = sum(self.masked.values())
        return dropped / max(1, dropped + sum(self.allowed.values()))


class TextMask:
    """The negatives of each row, by the texts of the batch.

    A candidate is dropped when its text is the row's query or any known positive of that query,
    when it is of the same class, and when an earlier candidate of the same softmax has the same
    text: a text counts once, so repeating a document in a batch does not change the loss. The
    positive itself is no candidate.
    """

    def __init__(self, texts: BatchTexts) -> None:
        """Number the texts of the batch."""
        remembered = texts.documents[:0] if texts.remembered is None else texts.remembered
        parts = [texts.queries, texts.documents, texts.known_positives, remembered]
        every = np.concatenate(parts)
        number = np.unique(every, return_inverse=True)[1]
        rows, documents = len(texts.queries), len(texts.documents)
        self._query_B = number[:rows]
        self._document_N = number[rows : rows + documents]
        self._owners_N = texts.owners
        self._classes_BL = None if texts.classes is None else texts.classes.reshape(rows, -1)
        self._num_texts = int(number.max(initial=-1)) + 1
        asked_P = np.searchsorted(np.sort(texts.queries), texts.known_queries)
        query_of_place = self._query_B[np.argsort(texts.queries, kind="stable")]
        first_remembered = len(every) - len(remembered)
        positive_P = number[rows + documents : first_remembered]
        self._pairs = _Pairs(query_of_place[asked_P], positive_P)
        self._remembered_Q = number[first_remembered:]

    @property
    def num_rows(self) -> int:
        """Rows of the batch, B."""
        return len(self._query_B)

    def allowed(
        self, terms: Sequence[Term], rows: slice, counts: MaskCounts
    ) -> dict[Term, np.ndarray]:
        """Negatives of these rows in one softmax over `terms`: (R, X) bool for each term.

        X is N - B for the terms over hard negatives, Q for the memory and B for all others;
        `counts` is added to.
        """
        row_R = np.arange(self.num_rows)[rows]
        related_RT = self._related(row_R)
        allowed: dict[Term, np.ndarray] = {
            term: self._candidates(term, row_R, related_RT, counts)
            for term in terms
            if term not in DOCUMENT_TERMS
        }
        documents: list[Term] = [term for term in terms if term in DOCUMENT_TERMS]
        return allowed | self._documents(documents, row_R, related_RT, counts)

    def _related(self, row_R: np.ndarray) -> np.ndarray:
        """(R, texts) bool: the text is the row's query or a known positive of that query."""
        related_RT = self._pairs.positives_of(self._query_B[row_R], self._num_texts)
        related_RT[np.arange(len(row_R)), self._query_B[row_R]] = True
        return related_RT

    def _same_class(self, row_R: np.ndarray, other_X: np.ndarray) -> np.ndarray | bool:
        """(R, X): the rows share a class."""
        if self._classes_BL is None:
            return False
        own_RL, other_XL = self._classes_BL[row_R], self._classes_BL[other_X]
        shared_RX = np.zeros((len(row_R), len(other_X)), dtype=bool)
        for own_R in own_RL.T:
            for one_X in other_XL.T:
                shared_RX |= own_R[:, None] == one_X[None, :]
        return shared_RX

    def _maybe_same_class(
        self, row_R: np.ndarray, owners_N: np.ndarray, is_positive_N: np.ndarray
    ) -> np.ndarray | bool:
        """Where another row's document may share a class with the row.

        A positive is taken to have the classes of its owner. A hard negative has none of them, and
        nothing else is known: it is safe only for rows whose classes all are its owner's.
        """
        if self._classes_BL is None:
            return False
        own_RL, owner_NL = self._classes_BL[row_R], self._classes_BL[owners_N]
        is_safe_RN = np.ones((len(row_R), len(owners_N)), dtype=bool)
        for own_R in own_RL.T:
            is_safe_RN &= (own_R[:, None, None] == owner_NL[None]).any(axis=2)
        return np.where(is_positive_N, self._same_class(row_R, owners_N), ~is_safe_RN)

    def _candidates(
        self, term: Term, row_R: np.ndarray, related_RT: np.ndarray, counts: MaskCounts
    ) -> np.ndarray:
        """Terms over queries, or over positives as seen from the positive: (R, B) bool."""
        num_rows = self.num_rows
        positive_B = self._document_N[:num_rows]
        other_RB = row_R[:, None] != np.arange(num_rows)[None, :]
        # two rows are the same question when either's positive answers the other
        same_RB = related_RT[:, self._query_B] | related_RT[:, positive_B]
        same_RB |= self._pairs.queries_of(positive_B[row_R], self._num_texts)[:, self._query_B]
        same_class_RB = other_RB & ~same_RB & self._same_class(row_R, np.arange(num_rows))
        text_B = positive_B if term == "documents" else self._query_B
        open_RB = other_RB & ~same_RB & ~same_class_RB
        allowed_RB = open_RB & _first_of_its_text(open_RB, text_B)
        masked = {
            "same_text": int((other_RB & same_RB).sum()),
            "same_class": int(same_class_RB.sum()),
            "repeat": int(open_RB.sum() - allowed_RB.sum()),
        }
        counts.add(term, int(allowed_RB.sum()), masked)
        return allowed_RB

    def _documents(
        self, terms: list[Term], row_R: np.ndarray, related_RT: np.ndarray, counts: MaskCounts
    ) -> dict[Term, np.ndarray]:
        """Terms over the documents as seen from the query, in one so that a text counts once."""
        num_rows, num_documents = self.num_rows, len(self._document_N)
        # remembered documents come last and belong to no row; N counts them too from here on
        document_N = np.concatenate([self._document_N, self._remembered_Q])
        owners_N = np.append(self._owners_N, np.full(len(self._remembered_Q), -1))
        own_RN = row_R[:, None] == owners_N[None, :]
        is_positive_N = np.arange(len(document_N)) < num_rows
        is_remembered_N = np.arange(len(document_N)) >= num_documents
        members = {
            "own_negatives": own_RN & ~is_positive_N,
            "other_positives": ~own_RN & is_positive_N,
            "other_negatives": ~own_RN & ~is_positive_N & ~is_remembered_N,
            "memory": ~own_RN & is_remembered_N,
        }
        candidate_RN = np.zeros_like(own_RN)
        for term in terms:
            candidate_RN |= members[term]
        same_text_RN = related_RT[:, document_N] & candidate_RN
        open_RN = candidate_RN & ~same_text_RN
        maybe_same_RN = self._maybe_same_class(row_R, owners_N, is_positive_N) & ~is_remembered_N
        same_class_RN = open_RN & ~own_RN & maybe_same_RN
        open_RN &= ~same_class_RN
        allowed_RN = open_RN & _first_of_its_text(open_RN, document_N)
        columns = {
            "other_positives": slice(0, num_rows),
            "own_negatives": slice(num_rows, num_documents),
            "other_negatives": slice(num_rows, num_documents),
            "memory": slice(num_documents, None),
        }
        found: dict[Term, np.ndarray] = {}
        for term in terms:
            of_term_RN = members[term]
            masked = {
                "same_text": int((same_text_RN & of_term_RN).sum()),
                "same_class": int((same_class_RN & of_term_RN).sum()),
                "repeat": int(((open_RN & ~allowed_RN) & of_term_RN).sum()),
            }
            kept_RN = allowed_RN & of_term_RN
            counts.add(term, int(kept_RN.sum()), masked)
            found[term] = kept_RN[:, columns[term]]
        return found


class _Pairs:
    """Known (query, positive) pairs of text numbers."""

    def __init__(self, query_P: np.ndarray, positive_P: np.ndarray) -> None:
        self._query_P = query_P
        self._positive_P = positive_P

    def positives_of(self, query_R: np.ndarray, num_texts: int) -> np.ndarray:
        """(R, texts) bool."""
        return _linked(query_R, self._query_P, self._positive_P, num_texts)

    def queries_of(self, positive_R: np.ndarray, num_texts: int) -> np.ndarray:
        """(R, texts) bool."""
        return _linked(positive_R, self._positive_P, self._query_P, num_texts)


def _linked(key_R: np.ndarray, from_P: np.ndarray, to_P: np.ndarray, num_texts: int) -> np.ndarray:
    """(R, texts) bool: True at the texts that a pair leads to from the key of the row."""
    order_P = np.argsort(from_P, kind="stable")
    start_R = np.searchsorted(from_P, key_R, sorter=order_P)
    count_R = np.searchsorted(from_P, key_R, "right", sorter=order_P) - start_R
    row_X = np.repeat(np.arange(len(key_R)), count_R)
    within_X = np.arange(len(row_X)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    linked_RT = np.zeros((len(key_R), num_texts), dtype=bool)
    linked_RT[row_X, to_P[order_P[start_R[row_X] + within_X]]] = True
    return linked_RT


def _first_of_its_text(candidate_RX: np.ndarray, text_X: np.ndarray) -> np.ndarray:
    """(R, X) bool: no earlier candidate of the row has this text."""
    num_texts = len(np.unique(text_X))
    if num_texts == len(text_X):
        return np.ones_like(candidate_RX)
    order_X = np.argsort(text_X, kind="stable")
    sorted_RX = candidate_RX[:, order_X]
    seen_RX = np.cumsum(sorted_RX, axis=1, dtype=np.int32)
    starts_X = np.searchsorted(text_X[order_X], text_X[order_X])
    before_RX = np.concatenate([np.zeros((len(seen_RX), 1), np.int32), seen_RX], axis=1)
    first_RX = np.empty_like(candidate_RX)
    first_RX[:, order_X] = seen_RX - before_RX[:, starts_X] == 1
    return first_RX
