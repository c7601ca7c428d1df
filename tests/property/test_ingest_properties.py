"""What holds of ingest for any text and any rows."""

import unicodedata

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contract.records import match_key, normalise_text, text_id
from tasks.ingest.classes import ClassPairs
from tasks.ingest.fingerprint import fingerprint
from tasks.ingest.overlap import OverlapIndex
from tasks.ingest.split import is_development, sample

TEXT = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(
            "аёЁйи\u0306\u0301 \t\n\r\u2028\u0085\u00a0\x00\u00ad\u200b\u200d\ufeff\ud800"
        ),
    ),
    max_size=30,
)
WORDS = st.lists(st.sampled_from(["а", "б", "в"]), max_size=12).map(" ".join)
LABELS = st.lists(
    st.sets(st.sampled_from("абвгд"), min_size=1, max_size=3), min_size=1, max_size=30
)


@given(TEXT)
def test_the_stored_form_of_a_stored_form_is_itself(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once


@given(TEXT)
def test_a_stored_text_is_composed_trimmed_and_can_be_written(text: str) -> None:
    once = normalise_text(text)
    once.encode("utf-8")
    assert once == unicodedata.normalize("NFC", once)
    assert once == once.strip()
    assert not any(pair in once for pair in ("  ", "\n\n", " \n", "\n ", "\t", "\r", "\x00"))


@given(TEXT)
def test_no_letter_or_digit_is_lost(text: str) -> None:
    def letters(value: str) -> str:
        return "".join(filter(str.isalnum, unicodedata.normalize("NFC", value)))

    assert letters(normalise_text(text)) == letters(
        "".join(char for char in text if unicodedata.category(char) not in {"Cc", "Cf", "Cs"})
    )


@given(st.text())
def test_a_key_holds_letters_and_digits_only(text: str) -> None:
    key = match_key(text)
    assert key == "" or key.isalnum()


@given(st.text())
def test_the_words_of_a_fingerprint_make_the_key(text: str) -> None:
    assert "".join(fingerprint(text).words) == match_key(text)


@given(st.lists(st.text()), st.lists(st.text()))
def test_different_parts_have_different_ids(one: list[str], other: list[str]) -> None:
    assert (text_id(*one) == text_id(*other)) == (one == other)


@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=8), st.integers(1, 5))
def test_overlap_agrees_with_a_search_for_the_run(
    evaluation: list[str], training: list[str], window: int
) -> None:
    """Reference: one text's run of words is searched for in another as a string."""

    def overlaps(text: str) -> bool:
        words = text.split()
        runs = [f" {' '.join(words[at : at + window])} " for at in range(len(words) - window + 1)]
        return any(
            (len(words) >= 3 and words == other.split()) or any(run in f" {other} " for run in runs)
            for other in evaluation
        ) or any(
            "".join(words) == "".join(other.split()) and len(other.split()) >= 3
            for other in evaluation
        )

    index = OverlapIndex(["T"] * len(evaluation), evaluation, window)
    found = index.find([fingerprint(text) for text in training])
    assert [answer is not None for answer in found] == [overlaps(text) for text in training]


@given(LABELS, st.integers(0, 3), st.integers(1, 4))
def test_partners_of_labelled_rows_fit(labels: list[set[str]], seed: int, count: int) -> None:
    pairs = ClassPairs([str(row) for row in range(len(labels))], [sorted(o) for o in labels], seed)
    for row, own in enumerate(labels):
        sharing = [other for other, its in enumerate(labels) if own & its and other != row]
        disjoint = [other for other, its in enumerate(labels) if not own & its]
        positive = pairs.positive(row)
        assert (positive in sharing) if sharing else positive is None
        negatives = pairs.negatives(row, count)
        assert len(negatives) == len(set(negatives)) == min(count, len(disjoint))
        assert set(negatives) <= set(disjoint)


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), unique=True, max_size=20), st.integers(1, 20)
)
def test_a_sample_is_the_smallest_ids_in_their_old_order(ids: list[str], size: int) -> None:
    chosen = sample(pa.table({"id": pa.array(ids, pa.string())}), size)["id"].to_pylist()
    assert sorted(chosen) == sorted(ids)[:size]
    assert chosen == [own for own in ids if own in chosen]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.5, 0.95]))
def test_the_development_share_is_that_of_params(start: int, fraction: float) -> None:
    """Binomial with 2000 draws: 6 standard deviations around the share."""
    keys = [[fingerprint(f"вопрос {start + row}").key] for row in range(2000)]
    table = pa.table({"keys": pa.array(keys, pa.list_(pa.uint64()))})
    share = np.mean(is_development(table, "retrieval", fraction))
    assert abs(share - fraction) <= 6 * np.sqrt(fraction * (1 - fraction) / 2000)
