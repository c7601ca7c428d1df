"""Answers of a model, failures of an endpoint, and the cache: each rule on its own."""

import contextlib
import email.utils
import json
import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contract.stage import StageError
from tasks.endpoint.failures import backoff_s, retry_after_s
from tasks.synthesize.answers import AnswerRejectedError, parse_grade, parse_plan, parse_query
from tasks.synthesize.cache import Answer, open_cache, question_key
from tasks.synthesize.drafts import Document

DOCUMENT = Document("1", "documents", "ru", "Волга", "Волга впадает в Каспийское море.")


@pytest.mark.parametrize(
    "text",
    [
        '{"score": 4}',
        '{"score": "4"}',
        '{"score": 4.0}',
        'Вот ответ: {"score": 4}. Удачи!',
        '```json\n{"score": 4}\n```',
        '<think>{"score": 1}</think>{"score": 4}',
        'По шкале {1..5}: {"score": 4}',
    ],
)
def test_a_grade_is_found_in_what_stands_around_it(text: str) -> None:
    assert parse_grade(text) == 4


VALUES = st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers())
KEYS = st.sampled_from(["query", "score", "character", "question_type", "difficulty"])


@given(st.text() | st.dictionaries(KEYS, VALUES).map(json.dumps))
def test_any_answer_is_used_or_rejected_with_a_reason(text: str) -> None:
    for parse in (parse_grade, parse_plan, lambda answer: parse_query(answer, DOCUMENT)):
        with contextlib.suppress(AnswerRejectedError):
            parse(text)


@pytest.mark.parametrize(
    "text", ["{" * 100_000, '{"a":' * 100_000, '{"score": ' + "9" * 5000 + "}"]
)
def test_a_monstrous_answer_is_rejected(text: str) -> None:
    with pytest.raises(AnswerRejectedError):
        parse_grade(text)


def test_a_query_is_one_clean_line() -> None:
    assert parse_query('{"query": " куда\\n впадает\\u200b  Волга? \\ud83d"}', DOCUMENT) == (
        "куда впадает Волга?"
    )


def test_a_short_query_may_stand_in_the_document() -> None:
    assert parse_query('{"query": "Каспийское море"}', DOCUMENT) == "Каспийское море"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 0.0), ("7", 7.0), (" 0.5 ", 0.5), ("soon", 0.0), ("-3", 0.0), ("", 0.0)],
)
def test_retry_after_in_seconds(value: str | None, expected: float) -> None:
    assert retry_after_s(value, 0.0) == expected


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(1_000_030, usegmt=True)
    assert retry_after_s(date, 1_000_000.0) == pytest.approx(30.0)
    assert retry_after_s(date, 2_000_000.0) == 0.0


@given(st.integers(0, 10_000), st.floats(0.01, 600))
def test_a_backoff_is_spread_over_the_upper_half_of_its_bound(attempt: int, longest: float) -> None:
    bound = min(longest, 0.5 * 2.0 ** min(attempt, 30))
    assert bound / 2 <= backoff_s(attempt, longest, random.Random(attempt)) <= bound


def test_a_key_depends_on_everything_that_decides_an_answer() -> None:
    messages = [{"role": "user", "content": "вопрос"}]
    other = [{"role": "system", "content": "вопрос"}]
    keys = {
        question_key(model, temperature, said)
        for model in ("a", "b")
        for temperature in (0.0, 0.7)
        for said in (messages, other, messages * 2)
    }
    assert len(keys) == 12


def test_the_first_answer_under_a_key_stays(tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache.sqlite") as cache:
        cache.put("key", Answer("первый", 1, 2))
        cache.put("key", Answer("второй", 3, 4))
        assert cache.get("key") == Answer("первый", 1, 2)
        assert cache.get("other") is None


def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with open_cache(path) as one, open_cache(path) as other:
        one.put("key", Answer("да", 1, 1))
        assert other.get("key") == Answer("да", 1, 1)


def test_an_answer_is_on_disk_before_put_returns(tmp_path: Path) -> None:
    """Seen by a connection that shares nothing with the first one but the files."""
    path = tmp_path / "cache.sqlite"
    with open_cache(path) as cache:
        cache.put("key", Answer("да", 1, 1))
        for file in tmp_path.iterdir():
            (tmp_path / "copy").mkdir(exist_ok=True)
            if file.is_file():
                (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
        copied = sqlite3.connect(tmp_path / "copy" / "cache.sqlite")
        assert copied.execute("SELECT text FROM answers").fetchall() == [("да",)]
        copied.close()


def test_a_damaged_cache_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("no database" * 1000)
    message = r"cache\.sqlite cannot be used .* move the file away"
    with pytest.raises(StageError, match=message), open_cache(path):
        pass


def test_a_full_disk_is_named_and_the_answers_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    message = r"cache\.sqlite cannot be used \(.*full\): free the disk"
    with pytest.raises(StageError, match=message):
        put_until_it_is_full(path, Answer("да" * 1000, 1, 1))
    with open_cache(path) as cache:
        assert cache.get("0") == Answer("да" * 1000, 1, 1)
        cache.put("last", Answer("нет", 1, 1))
        assert cache.get("last") == Answer("нет", 1, 1)


def put_until_it_is_full(path: Path, answer: Answer) -> None:
    with open_cache(path) as cache:
        cache._connection.execute("PRAGMA max_page_count = 4")
        for number in range(20):
            cache.put(str(number), answer)
