"""How one row becomes a candidate, and why it is refused."""

from typing import Any

import pytest
import yaml

from tasks.ingest.candidates import Candidate, RowParser, RowRefusedError
from tasks.params.data import Ingest, Source

LIMITS = """
sources: {s: {path: x, format: csv, task: documents, fields: {text: text}}}
languages: [ru]
min_characters: 2
max_characters: 10
overlap_words: 13
overlap: {}
max_overlap_share: 0.5
class_negatives: 2
development_fraction: 0.1
shard_rows: 10
seed: 1
"""


def parse(task: str, fields: dict[str, str], values: dict[str, Any], **more: object) -> Candidate:
    source = {"path": "x", "format": "csv", "task": task, "fields": fields, **more}
    limits = Ingest.model_validate(yaml.safe_load(LIMITS))
    return RowParser(Source.model_validate(source), limits).parse(0, values)


PAIR = {"query": "q", "positive": "p", "negative": "n"}


def test_texts_are_stored_in_their_normal_form() -> None:
    candidate = parse("nli", PAIR, {"q": " а  б ", "p": "и\u0306о", "n": "в\u200bг"})
    assert (candidate.query, candidate.positives, candidate.negatives) == ("а б", ["йо"], ["в г"])


@pytest.mark.parametrize("negative", [None, "", "  "])
def test_a_row_may_have_no_negative(negative: str | None) -> None:
    assert parse("nli", PAIR, {"q": "аб", "p": "вг", "n": negative}).negatives == []


def test_lists_of_positives_and_negatives_are_kept_each_text_once() -> None:
    candidate = parse("retrieval", PAIR, {"q": "аб", "p": ["вг", "вг "], "n": ["де", None, "жз"]})
    assert (candidate.positives, candidate.negatives) == (["вг"], ["де", "жз"])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"q": None, "p": "вг", "n": None}, "invalid"),
        ({"q": 12, "p": "вг", "n": None}, "invalid"),
        ({"q": b"\xff", "p": "вг", "n": None}, "invalid_utf8"),
        ({"q": " \u200b ", "p": "вг", "n": None}, "empty"),
        ({"q": "аб", "p": "", "n": None}, "empty"),
        ({"q": "аб", "p": [], "n": None}, "empty"),
        ({"q": "а", "p": "вг", "n": None}, "too_short"),
        ({"q": "аб", "p": "в" * 11, "n": None}, "too_long"),
        ({"q": "аб" * 500_000, "p": "вг", "n": None}, "too_long"),
        ({"q": "аб", "p": "вг", "n": "г" * 11}, "too_long"),
        ({"q": "аб", "p": "вг", "n": 3}, "invalid"),
        ({"q": "аб", "p": "аб", "n": None}, "same_text"),
        ({"q": "аб", "p": "вг", "n": "вг "}, "negative_is_positive"),
    ],
)
def test_a_bad_pair_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRefusedError) as refusal:
        parse("nli", PAIR, values)
    assert refusal.value.reason == reason


STS = {"query": "q", "positive": "p", "score": "s"}


@pytest.mark.parametrize(("given", "expected"), [(0, 0.0), ("5", 1.0), (2.5, 0.5), ("1e0", 0.2)])
def test_a_score_is_mapped_to_the_unit_interval(given: object, expected: float) -> None:
    values = {"q": "аб", "p": "аб", "s": given}
    assert parse("sts", STS, values, score_range=(0, 5)).score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (5.01, "score_out_of_range"),
        (-1, "score_out_of_range"),
        (float("nan"), "score_out_of_range"),
        ("high", "invalid"),
        (None, "invalid"),
        ([1], "invalid"),
    ],
)
def test_a_bad_score_is_refused(given: object, reason: str) -> None:
    with pytest.raises(RowRefusedError) as refusal:
        parse("sts", STS, {"q": "аб", "p": "вг", "s": given}, score_range=(0, 5))
    assert refusal.value.reason == reason


LABELLED = {"query": "q", "label": "l"}


@pytest.mark.parametrize(
    ("given", "separator", "expected"),
    [
        ("в,а", ",", ["а", "в"]),
        (" в , а ,, а", ",", ["а", "в"]),
        ("в,а", None, ["в,а"]),
        (3, None, ["3"]),
        ([3, 1], None, ["1", "3"]),
        (0.0, None, ["0"]),
        ([1.0, 2], None, ["1", "2"]),
        ("да".encode(), None, ["да"]),
        (["б", "а"], None, ["а", "б"]),
    ],
)
def test_labels_are_sorted_and_each_stands_once(
    given: object, separator: str | None, expected: list[str]
) -> None:
    values = {"q": "аб", "l": given}
    assert parse("classification", LABELLED, values, label_separator=separator).labels == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [("", "empty"), ([], "empty"), (None, "invalid"), (1.5, "invalid"), (float("nan"), "invalid")],
)
def test_a_bad_label_is_refused(given: object, reason: str) -> None:
    with pytest.raises(RowRefusedError) as refusal:
        parse("classification", LABELLED, {"q": "аб", "l": given})
    assert refusal.value.reason == reason


def test_a_text_of_a_binary_column_is_a_text() -> None:
    values = {"q": "аб".encode(), "p": ["вг".encode()], "n": b""}
    candidate = parse("retrieval", PAIR, values)
    assert (candidate.query, candidate.positives, candidate.negatives) == ("аб", ["вг"], [])


def test_a_document_may_have_no_title() -> None:
    fields = {"title": "t", "text": "x"}
    assert parse("documents", fields, {"t": None, "x": "аб"}).title == ""
    assert parse("documents", fields, {"t": "А", "x": "аб"}).title == "А"
