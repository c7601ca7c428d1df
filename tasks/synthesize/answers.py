"""What can be used of a model's answers, and the reason why the rest cannot."""

import json
import re
from itertools import islice
from typing import Any

from tasks.contract.records import match_key, normalise_text
from tasks.synthesize.drafts import Document
from tasks.synthesize.prompts import DIFFICULTIES, QUESTION_TYPES, Plan
from tasks.synthesize.terms import words_of

MAX_CHARACTER_CHARACTERS = 200
MAX_QUERY_CHARACTERS = 500
MAX_QUERY_WORDS = 60
MIN_COPIED_WORDS = 6
"""A query of fewer words may well stand in the document."""
GRADES = range(1, 6)
MAX_BRACES = 20
"""Places where the object of an answer is looked for; rubbish may have a million."""

_THOUGHTS = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)


class AnswerRejectedError(Exception):
    """An answer cannot be used; `reason` is counted in the metrics."""

    def __init__(self, reason: str) -> None:
        """Give the reason, one word with underscores."""
        super().__init__(reason)
        self.reason = reason


def parse_plan(text: str) -> Plan:
    """The plan of a first call.

    Raises:
        AnswerRejectedError: It is no JSON object, or names no known type and difficulty.
    """
    answer = _object(text, "plan_not_json")
    character, kind = answer.get("character"), answer.get("question_type")
    difficulty = answer.get("difficulty")
    if not isinstance(character, str) or not line_of(character):
        raise AnswerRejectedError("plan_without_character")
    # Lists, so that a choice of any JSON type can be compared.
    if kind not in list(QUESTION_TYPES) or difficulty not in list(DIFFICULTIES):
        raise AnswerRejectedError("plan_unknown_choice")
    return Plan(line_of(character)[:MAX_CHARACTER_CHARACTERS], str(kind), str(difficulty))


def parse_query(text: str, document: Document) -> str:
    """The query of a second call, on one line.

    Raises:
        AnswerRejectedError: It is no JSON object, empty, too long, or copied from the document.
    """
    query = _object(text, "query_not_json").get("query")
    if not isinstance(query, str) or not match_key(query):
        raise AnswerRejectedError("query_empty")
    query = line_of(query)
    num_words = len(words_of(query))
    if num_words > MAX_QUERY_WORDS or len(query) > MAX_QUERY_CHARACTERS:
        raise AnswerRejectedError("query_too_long")
    if num_words >= MIN_COPIED_WORDS and match_key(query) in match_key(document.whole):
        raise AnswerRejectedError("query_copied")
    return query


def parse_grade(text: str) -> int:
    """The grade of a judge's call, 1 to 5.

    Raises:
        AnswerRejectedError: It is no JSON object, or no such grade.
    """
    grade = _object(text, "grade_not_json").get("score")
    for number in GRADES:
        if grade in (number, str(number)) and grade is not True:
            return number
    raise AnswerRejectedError("grade_out_of_range")


def _object(text: str, reason: str) -> dict[str, Any]:
    """The first JSON object of an answer that may have thoughts and a code fence around it."""
    answer = _THOUGHTS.sub("", text)
    decoder = json.JSONDecoder()
    for brace in islice(re.finditer("{", answer), MAX_BRACES):
        try:
            return decoder.raw_decode(answer, brace.start())[0]
        except (ValueError, RecursionError):
            continue
    raise AnswerRejectedError(reason)


def line_of(text: str) -> str:
    """The text on one line."""
    return " ".join(normalise_text(text).split())
