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
        number = np.unique(np.concatenate(parts), return_inverse=True)[1]
        self._query_B, document_N, positive_P, remembered_Q = np.split(
            number, np.cumsum([len(part) for part in parts])[:-1]
        )
        rows, self._num_documents = len(texts.queries), len(texts.documents)
        self._positive_B = document_N[:rows]
        self._classes_BL = None if texts.classes is None else texts.classes.reshape(rows, -1)
        asked_P = np.searchsorted(np.sort(texts.queries), texts.known_queries)
        query_P = np.sort(self._query_B)[asked_P]
        self._answers = _Links(query_P, positive_P)
        self._asked_by = _Links(positive_P, query_P)
        # remembered documents come last and belong to no row; N counts them too from here on
        self._owners_N = np.append(texts.owners, np.full(len(remembered), -1))
        self._queries = _Candidates(self._query_B)
        self._positives = _Candidates(self._positive_B)
        self._documents = _Candidates(np.append(document_N, remembered_Q))

    @property
    def num_rows(self) -> int:
        """Rows of the batch, B."""
        return len(self._query_B)

    @property
    def most_candidates(self) -> int:
        """Candidates of the largest term."""
        bounds = [0, self.num_rows, self._num_documents, len(self._owners_N)]
        return int(np.diff(bounds).max())

    def allowed(
        self, terms: Sequence[Term], rows: slice, counts: MaskCounts
    ) -> dict[Term, np.ndarray]:
        """Negatives of these rows in one softmax over `terms`: (R, X) bool for each term.

        X is N - B for the terms over hard negatives, Q for the memory and B for all others;
        `counts` is added to.
        """
        row_R = np.arange(self.num_rows)[rows]
        related = self._related(row_R)
        allowed: dict[Term, np.ndarray] = {
            term: self._of_other_rows(term, row_R, related, counts)
            for term in terms
            if term not in DOCUMENT_TERMS
        }
        documents: list[Term] = [term for term in terms if term in DOCUMENT_TERMS]
        if documents:
            allowed |= self._among_documents(documents, row_R, related, counts)
        return allowed

    def _related(self, row_R: np.ndarray) -> "_Found":
        """Texts that are the row's query or a known positive of that query."""
        query_R = self._query_B[row_R]
        place, text = self._answers.of(query_R)
        return np.append(place, np.arange(len(row_R))), np.append(text, query_R)

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

    def _maybe_same_class(self, row_R: np.ndarray) -> np.ndarray | bool:
        """(R, N): where another row's document may share a class with the row.

        A positive is taken to have the classes of its owner. A hard negative has none of them, and
        nothing else is known: it is safe only for rows whose classes all are its owner's. Of
        remembered documents nothing is said.
        """
        if self._classes_BL is None:
            return False
        maybe_RN = np.zeros((len(row_R), len(self._owners_N)), dtype=bool)
        positives, negatives = self._columns("other_positives"), self._columns("own_negatives")
        maybe_RN[:, positives] = self._same_class(row_R, self._owners_N[positives])
        own_RL = self._classes_BL[row_R]
        owner_XL = self._classes_BL[self._owners_N[negatives]]
        is_safe_RX = np.ones((len(row_R), len(owner_XL)), dtype=bool)
        for own_R in own_RL.T:
            is_safe_RX &= (own_R[:, None, None] == owner_XL[None]).any(axis=2)
        maybe_RN[:, negatives] = ~is_safe_RX
        return maybe_RN

    def _of_other_rows(
        self, term: Term, row_R: np.ndarray, related: "_Found", counts: MaskCounts
    ) -> np.ndarray:
        """Terms over queries, or over positives as seen from the positive: (R, B) bool."""
        rows = len(row_R)
        other_RB = row_R[:, None] != np.arange(self.num_rows)[None, :]
        # two rows are the same question when either's positive answers the other
        same_RB = self._queries.are(related, rows) | self._positives.are(related, rows)
        answered = self._asked_by.of(self._positive_B[row_R])
        same_RB |= self._queries.are(answered, rows)
        same_class_RB = other_RB & ~same_RB & self._same_class(row_R, np.arange(self.num_rows))
        candidates = self._positives if term == "documents" else self._queries
        open_RB = other_RB & ~same_RB & ~same_class_RB
        allowed_RB = candidates.first_of_each(open_RB)
        masked = {
            "same_text": _count(other_RB & same_RB),
            "same_class": _count(same_class_RB),
            "repeat": _count(open_RB) - _count(allowed_RB),
        }
        counts.add(term, _count(allowed_RB), masked)
        return allowed_RB

    def _columns(self, term: Term) -> slice:
        """Where the candidates of a term over documents stand."""
        first, last = self.num_rows, self._num_documents
        if term == "other_positives":
            return slice(0, first)
        return slice(last, None) if term == "memory" else slice(first, last)

    def _among_documents(
        self, terms: list[Term], row_R: np.ndarray, related: "_Found", counts: MaskCounts
    ) -> dict[Term, np.ndarray]:
        """Terms over the documents as seen from the query, in one so that a text counts once."""
        own_RN = row_R[:, None] == self._owners_N[None, :]
        candidate_RN = np.zeros_like(own_RN)
        members: dict[Term, np.ndarray] = {}
        for term in terms:
            own_RX = own_RN[:, self._columns(term)]
            members[term] = own_RX if term == "own_negatives" else ~own_RX
            candidate_RN[:, self._columns(term)] |= members[term]
        same_text_RN = self._documents.are(related, len(row_R)) & candidate_RN
        open_RN = candidate_RN & ~same_text_RN
        same_class_RN = open_RN & ~own_RN & self._maybe_same_class(row_R)
        open_RN &= ~same_class_RN
        allowed_RN = self._documents.first_of_each(open_RN)
        found: dict[Term, np.ndarray] = {}
        for term, member_RX in members.items():
            columns = self._columns(term)
            kept_RX = allowed_RN[:, columns] & member_RX
            is_open = _count(open_RN[:, columns] & member_RX)
            masked = {
                "same_text": _count(same_text_RN[:, columns] & member_RX),
                "same_class": _count(same_class_RN[:, columns] & member_RX),
                "repeat": is_open - _count(kept_RX),
            }
            counts.add(term, _count(kept_RX), masked)
            found[term] = kept_RX
        return found


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


_Found = tuple[np.ndarray, np.ndarray]
"""Place of a row and number of a text, for every text that was found for it."""


class _Links:
    """What texts are linked to others: known positives to queries, or the other way round."""

    def __init__(self, from_P: np.ndarray, to_P: np.ndarray) -> None:
        order_P = np.argsort(from_P, kind="stable")
        self._from_P, self._to_P = from_P[order_P], to_P[order_P]

    def of(self, text_R: np.ndarray) -> _Found:
        """The texts that those of the rows lead to."""
        place, link = _every_match(text_R, self._from_P)
        return place, self._to_P[link]


class _Candidates:
    """Texts that stand side by side, and where each of them does."""

    def __init__(self, text_X: np.ndarray) -> None:
        self._order_X = np.argsort(text_X, kind="stable")
        self._sorted_X = text_X[self._order_X]
        self._is_distinct = not (self._sorted_X[1:] == self._sorted_X[:-1]).any()

    def are(self, found: _Found, rows: int) -> np.ndarray:
        """(R, X) bool: the candidate is a text found for the row."""
        place, text = found
        which, position = _every_match(text, self._sorted_X)
        is_found_RX = np.zeros((rows, len(self._order_X)), dtype=bool)
        is_found_RX[place[which], self._order_X[position]] = True
        return is_found_RX

    def first_of_each(self, open_RX: np.ndarray) -> np.ndarray:
        """(R, X) bool: of open candidates of a row with one text, the first."""
        if self._is_distinct:
            return open_RX
        open_sorted_RX = open_RX[:, self._order_X]
        seen_RX = np.cumsum(open_sorted_RX, axis=1, dtype=np.int32)
        starts_X = np.searchsorted(self._sorted_X, self._sorted_X)
        before_RX = np.concatenate([np.zeros((len(seen_RX), 1), np.int32), seen_RX], axis=1)
        first_RX = np.empty_like(open_RX)
        first_RX[:, self._order_X] = seen_RX - before_RX[:, starts_X] == 1
        return open_RX & first_RX


def _every_match(text_R: np.ndarray, sorted_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in both of every pair of equal texts, those of the first rising."""
    start_R = np.searchsorted(sorted_X, text_R)
    count_R = np.searchsorted(sorted_X, text_R, "right") - start_R
    which = np.repeat(np.arange(len(text_R)), count_R)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    return which, start_R[which] + within
