"""Overlap with evaluation texts, against plain sets of tuples."""

import random
import re

import pytest

from tasks.ingest.fingerprint import fingerprint
from tasks.ingest.overlap import OverlapIndex

VOCABULARY = [f"слово{number}" for number in range(4)]


def find(evaluation: list[str], text: str, window: int = 13) -> str | None:
    index = OverlapIndex(["T"] * len(evaluation), evaluation, window)
    match = index.find([fingerprint(text)])[0]
    return match and str(match)


def numbered(start: int, count: int) -> str:
    return " ".join(f"с{number}" for number in range(start, start + count))


def test_thirteen_shared_words_are_found_anywhere() -> None:
    assert (
        find([numbered(0, 40)], f"иное {numbered(20, 13)} иное")
        == f"T: 13 words: {numbered(20, 13)}"
    )


def test_twelve_shared_words_are_no_overlap() -> None:
    assert find([numbered(0, 40)], f"иное {numbered(20, 12)} иное") is None


def test_case_punctuation_and_yo_do_not_hide_an_overlap() -> None:
    text = "ещё раз, о том же: ЁЖ и лиса шли в лес за грибами — вдвоём!"
    plain = "еще раз о том же еж и лиса шли в лес за грибами вдвоем"
    assert find([text], f"так вот {plain} и так") is not None


def test_a_run_over_two_evaluation_texts_is_no_overlap() -> None:
    assert find([numbered(0, 10), numbered(10, 10)], numbered(0, 20)) is None


def test_a_run_over_two_training_texts_is_no_overlap() -> None:
    index = OverlapIndex(["T"], [numbered(0, 20)], 13)
    halves = [fingerprint(numbered(0, 10)), fingerprint(numbered(10, 10))]
    assert index.find(halves) == [None, None]


@pytest.mark.parametrize("text", ["Выключи, пожалуйста!", "Он не пришёл"])
def test_an_equal_short_text_is_found(text: str) -> None:
    assert find([text], text.lower()) == "T: the whole text"


@pytest.mark.parametrize("text", ["да", "спорт", "новая волна"])
def test_a_text_as_short_as_a_label_is_no_overlap(text: str) -> None:
    assert find([text], text) is None


def test_a_short_text_inside_a_longer_one_is_no_overlap() -> None:
    assert find(["он не пришёл"], "вчера он не пришёл домой") is None


def test_the_answer_names_the_task_of_the_text() -> None:
    index = OverlapIndex(["A", "B"], [numbered(0, 20), numbered(100, 20)], 13)
    found = index.find([fingerprint(numbered(104, 14)), fingerprint(numbered(0, 13))])
    assert [str(answer)[:2] for answer in found] == ["B:", "A:"]


def test_no_evaluation_text_and_no_text_are_no_overlap() -> None:
    assert find([], numbered(0, 20)) is None
    assert OverlapIndex(["T"], [numbered(0, 20)], 13).find([]) == []
    assert find([numbered(0, 20)], "!!!") is None


@pytest.mark.parametrize("window", [2, 3, 5])
def test_random_texts_agree_with_sets_of_tuples(window: int) -> None:
    """A small vocabulary gives many shared runs; the reference knows no hash."""
    draw = random.Random(window)

    def texts(count: int) -> list[str]:
        lengths = [draw.randrange(0, 12) for _ in range(count)]
        return [" ".join(draw.choices(VOCABULARY, k=length)) for length in lengths]

    evaluation, training = texts(6), texts(300)

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text)
        return {tuple(words[at : at + window]) for at in range(len(words) - window + 1)}

    known = set().union(*map(runs, evaluation))
    equal = {text for text in evaluation if len(text.split()) >= 3 or len(text) >= 13}
    expected = [bool(runs(text) & known) or text in equal for text in training]
    index = OverlapIndex(["T"] * len(evaluation), evaluation, window)
    found = index.find([fingerprint(text) for text in training])
    assert [answer is not None for answer in found] == expected
    assert 0 < sum(expected) < len(expected)
