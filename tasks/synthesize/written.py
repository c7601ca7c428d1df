"""What can be used of a line that a language model wrote after examples, and why others cannot."""

import re
from difflib import SequenceMatcher
from functools import cache

from tasks.contract.records import fold, match_key
from tasks.ingest.language import LanguageDetector
from tasks.synthesize.answers import (
    MAX_QUERY_CHARACTERS,
    MIN_COPIED_WORDS,
    AnswerRejectedError,
    line_of,
)
from tasks.synthesize.drafts import Document
from tasks.synthesize.examples import LABELS, Examples
from tasks.synthesize.terms import WORD, words_of

WORDS = {"keywords": range(3, 11), "question": range(3, 26), "headline": range(3, 21)}
"""Words that a query of each style has; two keywords fit too many documents to teach anything."""
MIN_OPENING_WORDS = 3
"""A query that the document begins with is copied from so many words on."""
MIN_PIECE_WORDS, PATCHED_SHARE = 3, 0.8
"""A query is copied as well if pieces of so many words make up so much of it."""
SAME_WORDS_SHARE = 0.7
"""Share of common words from which a query counts as one of the examples."""
MIN_LOOP_WORDS, DISTINCT_SHARE = 5, 0.6
"""A query of so many words or more needs this share of different ones."""

_MARKS = re.compile(r"^(?:[-–—•*·]|\d{1,2}[.)])\s+")
_QUOTED = re.compile(r"[«\"“„']([^«»\"“”„]+)[»\"”“']")
_LABEL = re.compile(rf"\b(?:{'|'.join(LABELS)})\w*\s*:", re.IGNORECASE)
_MENTIONS = re.compile(r"\b(?:отрыв(?:ок|к\w{1,3})|(?:этом|данном|приведенном)\s+текст\w*)\b")


def written_query(
    text: str, style: str, document: Document, examples: Examples, *, is_whole: bool
) -> str:
    """The query that an answer begins with, without marks around it.

    Args:
        text: What was written after the prompt.
        style: What was asked for.
        document: What it was written for.
        examples: What the prompt showed.
        is_whole: Whether the model ended the line itself.

    Raises:
        AnswerRejectedError: It is empty, cut off, too short or long, goes round in circles, holds
            a label of the prompt, is in another language, or is copied.
    """
    query = _bare(line_of(text.partition("\n")[0]))
    words = words_of(fold(query))
    reason = (
        _fault_of_form(query, words, style, is_whole=is_whole)
        or _fault_of_source(words, document, examples)
        or (None if _is_in_language(query, document) else "query_in_another_language")
    )
    if reason is not None:
        raise AnswerRejectedError(reason)
    return query


def _fault_of_form(query: str, words: list[str], style: str, *, is_whole: bool) -> str | None:
    faults = {
        "query_empty": not match_key(query),
        "query_cut_off": not is_whole,
        "query_too_short": len(words) < WORDS[style].start,
        "query_too_long": len(words) >= WORDS[style].stop or len(query) > MAX_QUERY_CHARACTERS,
        "query_goes_round": len(words) >= MIN_LOOP_WORDS
        and len(set(words)) < DISTINCT_SHARE * len(words),
        "query_mentions_prompt": bool(_LABEL.search(query) or _MENTIONS.search(fold(query))),
    }
    return next((reason for reason, is_so in faults.items() if is_so), None)


def _fault_of_source(words: list[str], document: Document, examples: Examples) -> str | None:
    if _is_example(words, examples):
        return "query_is_an_example"
    return "query_copied" if _is_copied(words, words_of(fold(document.whole))) else None


def _bare(line: str) -> str:
    """The line without a list mark, quotes around it all and a full stop."""
    line = _MARKS.sub("", line)
    quoted = _QUOTED.fullmatch(line.rstrip(" ."))
    return (quoted[1] if quoted else line).rstrip(" .,;:")


def _is_example(words: list[str], examples: Examples) -> bool:
    own = set(words)
    for queries in examples.queries.values():
        for query in queries:
            theirs = set(words_of(fold(query)))
            if len(own & theirs) >= SAME_WORDS_SHARE * len(own | theirs) or theirs <= own:
                return True
    return any(_is_copied(words, words_of(fold(passage))) for passage in examples.passages)


def _is_copied(words: list[str], source: list[str]) -> bool:
    """Whether a query stands in a text, is what it begins with, or is patched up from it."""
    if len(words) >= MIN_OPENING_WORDS and words == source[: len(words)]:
        return True
    pieces = SequenceMatcher(None, words, source, autojunk=False).get_matching_blocks()
    if max(piece.size for piece in pieces) >= MIN_COPIED_WORDS:
        return True
    patched = sum(piece.size for piece in pieces if piece.size >= MIN_PIECE_WORDS)
    return len(words) > MIN_COPIED_WORDS and patched >= PATCHED_SHARE * len(words)


def _is_in_language(query: str, document: Document) -> bool:
    """Judged by the words that the document does not hold: names of things are in any language."""
    known = set(words_of(document.whole))
    own = [word for word in WORD.findall(query) if word.casefold() not in known]
    letters = [word for word in own if not word.isnumeric()]
    return not letters or _detector(document.lang).detect(" ".join(letters)) == document.lang


@cache
def _detector(lang: str) -> LanguageDetector:
    return LanguageDetector([lang])
