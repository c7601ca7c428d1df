"""Queries without a language model: what the document itself gives away.

They train matching of words rather than of meaning; the metrics name this generator so that nobody
takes them for written questions.
"""

import logging
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from tasks.contract.records import text_id
from tasks.synthesize.drafts import Document, Draft, Drafts
from tasks.synthesize.terms import (
    STEM_CHARACTERS,
    WORD,
    TermWeights,
    is_term,
    sentences_of,
    telling_terms,
    words_of,
)

if TYPE_CHECKING:
    from pymorphy3 import MorphAnalyzer

KINDS = ("title", "cloze", "keywords", "first_sentence")
NUM_KEYWORDS = 4
FIRST_SENTENCE_WORDS = range(4, 41)
CLOZE_WORDS = range(5, 31)
GAP = "…"

_WHAT = {"nomn": "что", "gent": "чего", "datv": "чему", "accs": "что", "ablt": "чем", "loct": "чём"}
_WHO = {"nomn": "кто", "gent": "кого", "datv": "кому", "accs": "кого", "ablt": "кем", "loct": "ком"}
_MODIFIERS = {"ADJF", "PRTF", "NUMR"}

logger = logging.getLogger(__name__)


def write_offline(documents: list[Document], queries_per_document: int, seed: int) -> Drafts:
    """Drafts of every document, in its order; a document may give fewer than asked.

    The kinds take turns from document to document. All queries of a document share one positive,
    so that training recognises them as such: title and text, or the text alone where the title
    is a query.
    """
    weights = TermWeights(document.whole for document in documents)
    drafts = Drafts()
    for document in documents:
        queries = dict(_take(_queries(document, weights, seed), queries_per_document))
        positive = document.text if "title" in queries else document.whole
        drafts.kept += [
            Draft(kind, document.lang, query, positive) for kind, query in queries.items()
        ]
        if not queries:
            drafts.rejected["document_gives_none"] += 1
    logger.info("%d queries from %d documents", len(drafts.kept), len(documents))
    return drafts


def cloze(sentence: str, term: str, lang: str) -> str | None:
    """The sentence as a question for one of its words; None where the word cannot be asked for."""
    found = re.search(rf"(?<![\w«\"-]){re.escape(term)}(?![\w»\"-])", sentence, re.IGNORECASE)
    if found is None:
        return None
    gap = GAP
    if lang == "ru":
        before = WORD.findall(sentence[: found.start()])
        asked_for = interrogative(term, before[-1] if before else None)
        if asked_for is None:
            return None
        gap = asked_for
    question = f"{sentence[: found.start()]}{gap}{sentence[found.end() :]}".rstrip(" .!?;:")
    return f"{question[0].upper()}{question[1:]}?"


def interrogative(noun: str, before: str | None) -> str | None:
    """The Russian pronoun that asks for a noun, in its case.

    None for another part of speech or a plural, and after an adjective or a name, which a pronoun
    cannot follow.
    """
    tag = _morphology().parse(noun)[0].tag
    if tag.POS != "NOUN" or tag.number != "sing":
        return None
    if before is not None:
        other = _morphology().parse(before)[0].tag
        if other.POS in _MODIFIERS or "Name" in other:
            return None
    return (_WHO if tag.animacy == "anim" else _WHAT).get(str(tag.case))


def _queries(document: Document, weights: TermWeights, seed: int) -> Iterator[tuple[str, str]]:
    """Kind and query of each kind that the document allows, in its own order of kinds."""
    first = int(text_id("kind", str(seed), document.id), 16) % len(KINDS)
    writers = {
        "title": _title,
        "cloze": _best_cloze,
        "keywords": _keywords,
        "first_sentence": _first_sentence,
    }
    for kind in KINDS[first:] + KINDS[:first]:
        query = writers[kind](document, weights)
        if query:
            yield kind, query


def _title(document: Document, _weights: TermWeights) -> str | None:
    return document.title or None


def _keywords(document: Document, weights: TermWeights) -> str | None:
    terms = telling_terms(weights.of(document.whole), NUM_KEYWORDS)
    return " ".join(terms) if len(terms) > 1 else None


def _first_sentence(document: Document, _weights: TermWeights) -> str | None:
    sentences = sentences_of(document.text)
    # Of a text of one sentence the query would be the positive.
    if len(sentences) < 2 or len(words_of(sentences[0])) not in FIRST_SENTENCE_WORDS:  # noqa: PLR2004
        return None
    return sentences[0]


def _best_cloze(document: Document, weights: TermWeights) -> str | None:
    """A question about the most telling sentence, for its heaviest term but one.

    Without its heaviest term a sentence hardly says any more which document it is from.
    """
    by_word = weights.of(document.whole)
    candidates = []
    for sentence in sentences_of(document.text):
        words = words_of(sentence)
        terms = sorted({word for word in words if is_term(word)}, key=lambda w: (-by_word[w], w))
        if len(words) in CLOZE_WORDS and len(terms) > 1:
            candidates.append((-by_word[terms[0]], sentence, terms))
    for _, sentence, (topic, *others) in sorted(candidates):
        for term in others:
            same_word = term[:STEM_CHARACTERS] == topic[:STEM_CHARACTERS]
            if not same_word and (question := cloze(sentence, term, document.lang)):
                return question
    return None


def _take(queries: Iterator[tuple[str, str]], count: int) -> Iterator[tuple[str, str]]:
    yield from (query for _, query in zip(range(count), queries, strict=False))


@cache
def _morphology() -> "MorphAnalyzer":
    logging.getLogger("pymorphy3").setLevel(logging.WARNING)
    # Half a second and 30 MB of dictionaries.
    from pymorphy3 import MorphAnalyzer

    return MorphAnalyzer()
