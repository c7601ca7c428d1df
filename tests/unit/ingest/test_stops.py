"""What stops the stage, and what it says then."""

import pytest

from tasks.contract.stage import StageError


def test_a_source_without_a_usable_row_is_named(corpus) -> None:
    corpus.jsonl("bad", "retrieval", [{"q": "", "p": "вг"}], query="q", positive="p")
    with pytest.raises(StageError, match=r"source bad: none of its 1 rows can be used: .*'empty'"):
        corpus.run()
    assert not list((corpus.root / "artifacts").iterdir())


def test_the_first_refused_rows_are_told_when_no_row_stays(corpus) -> None:
    rows = [{"q": "", "p": "ответ"}, {"q": 5, "p": "ответ"}, {"q": "а", "p": "ответ"}] * 2
    corpus.jsonl("bad", "retrieval", rows, query="q", positive="p")
    told = (
        "row 0 of bad.jsonl: empty, q is empty; row 1 of bad.jsonl: invalid, q is int '5', "
        "expected a text; row 2 of bad.jsonl: too_short, q has 1 characters, "
        "fewer than ingest.min_characters 2"
    )
    with pytest.raises(StageError, match=f"none of its 6 rows .* the first are {told}$"):
        corpus.run()


def test_a_missing_source_is_named_before_any_is_read(corpus) -> None:
    corpus.declare("gone", "gone.parquet", "parquet", "documents", text="text")
    with pytest.raises(StageError, match=r"source gone: nothing at corpus/gone\.parquet"):
        corpus.run()


def test_no_document_at_all_is_an_error(corpus) -> None:
    del corpus.sources["documents"]
    with pytest.raises(StageError, match="no document at all: declare a source"):
        corpus.run()


def test_a_language_that_is_not_kept_is_an_error(corpus) -> None:
    corpus.sources["questions"]["lang"] = "en"
    with pytest.raises(StageError, match=r"source questions has lang en, but .* only \['ru'\]"):
        corpus.run()


def test_a_score_range_upside_down_is_an_error(corpus) -> None:
    rows = [{"q": "фраза", "p": "слова", "s": 1}]
    source = corpus.jsonl("sts", "sts", rows, query="q", positive="p", score="s")
    source["score_range"] = [5, 0]
    with pytest.raises(ValueError, match=r"sts.*score_range"):
        corpus.run()
