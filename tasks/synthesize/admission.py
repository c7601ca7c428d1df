"""Which documents get queries, and which queries become examples."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from tasks.contract.records import EXAMPLE_SCHEMA, match_key, text_id
from tasks.params.data import Synthesize
from tasks.synthesize.drafts import Document, Draft, Drafts

SOURCE = "synthetic"
BLOCK_DOCUMENTS = 1000


@dataclass(frozen=True)
class HeldOut:
    """Match keys of the texts that no example may hold."""

    evaluation: set[str]
    """Texts of the evaluation sets."""
    development: set[str]
    """Queries and positives of the development split."""

    @classmethod
    def of(cls, evaluation: pa.Table, development: pa.Table) -> "HeldOut":
        """From the tables of ingest."""
        positives = [text for texts in development["positives"].to_pylist() for text in texts or []]
        queries = development["query"].to_pylist()
        return cls(_keys(evaluation["text"].to_pylist()), _keys([*queries, *positives]))

    def reason(self, text: str) -> str | None:
        """Why `text` may not stand in an example; None when it may."""
        key = match_key(text)
        if key in self.evaluation:
            return "evaluation_text"
        return "development_text" if key in self.development else None


@dataclass(frozen=True)
class Selection:
    """The documents that get queries, in their order."""

    documents: list[Document]
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason to number of documents passed over."""


def select_documents(table: pa.Table, section: Synthesize, held_out: HeldOut) -> Selection:
    """The first max_documents documents by a hash of seed and id, held-out ones passed over.

    A larger max_documents gives the same documents and more; so does a larger corpus, but for
    those that come between.
    """
    selection = Selection([])
    for document in by_hash(table, section.seed):
        if len(selection.documents) >= section.max_documents:
            return selection
        reason = held_out.reason(document.text) or held_out.reason(document.whole)
        if reason is None:
            selection.documents.append(document)
        else:
            selection.skipped[reason] += 1
    return selection


def by_hash(table: pa.Table, seed: int) -> Iterator[Document]:
    """The documents in the order of a hash of seed and id."""
    ranks = [text_id(str(seed), name) for name in table["id"].to_pylist()]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    for start in range(0, len(order), BLOCK_DOCUMENTS):
        block = table.take(order[start : start + BLOCK_DOCUMENTS])
        for row in block.select(list(Document.__dataclass_fields__)).to_pylist():
            yield Document(**row)


def admit(drafts: Drafts, held_out: HeldOut) -> tuple[pa.Table, list[Draft], Counter[str]]:
    """Make examples of the drafts that may be trained on.

    A query that two documents share would make each a false negative of the other, so the first
    one keeps it.

    Returns:
        Examples (EXAMPLE_SCHEMA) in the order of the drafts, their drafts, and the number of
        queries that were refused by reason.
    """
    admitted: list[Draft] = []
    refused: Counter[str] = Counter()
    seen: set[str] = set()
    for draft in drafts.kept:
        key = match_key(draft.query)
        reason = _refusal(key, draft, seen) or held_out.reason(draft.query)
        if reason is None:
            seen.add(key)
            admitted.append(draft)
        else:
            refused[reason] += 1
    rows = [_example(draft) for draft in admitted]
    return pa.Table.from_pylist(rows, EXAMPLE_SCHEMA), admitted, refused


def _refusal(key: str, draft: Draft, seen: set[str]) -> str | None:
    if not key:
        return "query_empty"
    if key in seen:
        return "query_repeated"
    return "query_is_the_document" if key == match_key(draft.positive) else None


def _example(draft: Draft) -> dict[str, object]:
    return {
        "id": text_id(SOURCE, draft.query, draft.positive),
        "task": "retrieval",
        "source": SOURCE,
        "lang": draft.lang,
        "query": draft.query,
        "positives": [draft.positive],
        "positive_scores": None,
        "negatives": [],
        "negative_scores": None,
        "label": None,
        "score": None,
    }


def _keys(texts: list[str]) -> set[str]:
    return {match_key(text) for text in texts} - {""}
