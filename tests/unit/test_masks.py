"""The text mask: what is a negative of which query, decided on small batches by hand."""

import dataclasses

import numpy as np
import pytest

from model.losses.masks import BatchTexts, MaskCounts, TextMask, text_hashes
from model.losses.terms import Term

Row = tuple[str, list[str], list[str]]
"""Query, positives (the first is drawn), hard negatives."""


def batch_of(rows: list[Row]) -> BatchTexts:
    queries = [query for query, _, _ in rows]
    documents = [positives[0] for _, positives, _ in rows]
    owners = list(range(len(rows)))
    for number, (_, _, negatives) in enumerate(rows):
        documents += negatives
        owners += [number] * len(negatives)
    known = [(query, positive) for query, positives, _ in rows for positive in positives]
    return BatchTexts(
        queries=text_hashes(queries),
        documents=text_hashes(documents),
        owners=np.array(owners),
        known_queries=text_hashes(query for query, _ in known),
        known_positives=text_hashes(positive for _, positive in known),
    )


OWN: tuple[Term, ...] = ("own_negatives",)
DOCUMENTS: tuple[Term, ...] = ("own_negatives", "other_positives", "other_negatives")


def allowed(rows: list[Row], *, in_batch: bool = True) -> list[list[int]]:
    """(B, N): 1 for each document in the denominator of a query, its positive among them."""
    found = TextMask(batch_of(rows)).allowed(
        DOCUMENTS if in_batch else OWN, slice(0, len(rows)), MaskCounts()
    )
    positives = found.get("other_positives", np.zeros((len(rows), len(rows)), dtype=bool))
    negatives = found["own_negatives"] | found.get("other_negatives", False)
    return np.hstack([positives | np.eye(len(rows), dtype=bool), negatives]).astype(int).tolist()


def term(
    name: Term, rows: list[Row], classes: list[int] | list[list[int]] | None = None
) -> list[list[int]]:
    texts = batch_of(rows)
    if classes is not None:
        texts = dataclasses.replace(texts, classes=np.array(classes))
    found = TextMask(texts).allowed([name], slice(0, len(rows)), MaskCounts())
    return found[name].astype(int).tolist()


def test_distinct_texts_are_all_candidates() -> None:
    rows: list[Row] = [("q1", ["p1"], ["n1"]), ("q2", ["p2"], [])]
    assert allowed(rows) == [[1, 1, 1], [1, 1, 1]]


def test_without_in_batch_only_the_own_hard_negatives_count() -> None:
    rows: list[Row] = [("q1", ["p1"], ["n1", "n2"]), ("q2", ["p2"], ["n3"])]
    assert allowed(rows, in_batch=False) == [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


def test_a_document_that_reads_like_the_positive_is_masked() -> None:
    rows: list[Row] = [("q1", ["same"], []), ("q2", ["same"], [])]
    assert allowed(rows) == [[1, 0], [0, 1]]


def test_a_hard_negative_that_reads_like_the_positive_is_masked() -> None:
    rows: list[Row] = [("q1", ["p1"], ["p1", "n1"])]
    assert allowed(rows) == [[1, 0, 1]]
    assert allowed(rows, in_batch=False) == [[1, 0, 1]]


def test_a_document_that_reads_like_the_query_is_masked() -> None:
    rows: list[Row] = [("q1", ["p1"], []), ("q2", ["q1"], [])]
    assert allowed(rows) == [[1, 0], [1, 1]]


def test_rows_with_the_same_query_mask_each_others_positives() -> None:
    rows: list[Row] = [("q", ["p1"], ["n1"]), ("q", ["p2"], []), ("r", ["p3"], [])]
    assert allowed(rows) == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]


def test_a_known_positive_that_was_not_drawn_is_masked() -> None:
    rows: list[Row] = [("q1", ["p1", "p2"], []), ("q2", ["p2"], [])]
    assert allowed(rows) == [[1, 0], [1, 1]]


def test_a_positive_that_reads_like_its_own_query_stays() -> None:
    rows: list[Row] = [("q1", ["q1"], []), ("q2", ["p2"], [])]
    assert allowed(rows) == [[1, 1], [1, 1]]


def test_a_text_counts_once_per_query() -> None:
    rows: list[Row] = [("q1", ["p1"], ["n", "n"]), ("q2", ["p2"], ["n"])]
    assert allowed(rows) == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert allowed(rows, in_batch=False) == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]


def test_letter_case_and_white_space_do_not_hide_a_positive() -> None:
    rows: list[Row] = [("q1", ["Ясный  день"], []), ("q2", ["ясный день "], [])]
    assert allowed(rows) == [[1, 0], [0, 1]]


def test_ragged_hard_negatives_belong_to_their_own_row() -> None:
    """A row without negatives must not be lent its positive as one, nor those of its neighbour."""
    rows: list[Row] = [("q1", ["p1"], []), ("q2", ["p2"], ["a", "b"]), ("q3", ["p3"], ["c"])]
    assert allowed(rows, in_batch=False) == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]


def test_everything_that_is_dropped_is_counted() -> None:
    rows: list[Row] = [("q1", ["same"], ["n", "n"]), ("q2", ["same"], ["m"])]
    counts = MaskCounts()
    TextMask(batch_of(rows)).allowed(DOCUMENTS, slice(0, 2), counts)
    # each query has 4 candidates: "same" of the other row, n, n, m
    assert counts.masked == {"same_text": 2, "same_class": 0, "repeat": 2}
    assert counts.allowed == {"own_negatives": 2, "other_positives": 0, "other_negatives": 2}
    assert counts.masked_share == pytest.approx(4 / 8)


def test_a_batch_without_negatives_has_a_masked_share_of_zero() -> None:
    counts = MaskCounts()
    texts = batch_of([("q1", ["p1"], []), ("q2", ["p2"], [])])
    TextMask(texts).allowed(OWN, slice(0, 2), counts)
    assert counts.masked_share == 0.0


def test_queries_that_share_an_answer_are_no_negatives_of_each_other() -> None:
    rows: list[Row] = [("q1", ["p"], []), ("q2", ["p"], []), ("q3", ["p3"], [])]
    assert term("queries", rows) == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert term("document_queries", rows) == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert term("documents", rows) == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]  # p counts once


def test_an_undrawn_positive_ties_two_rows_together() -> None:
    rows: list[Row] = [("q1", ["p1", "p2"], []), ("q2", ["p2"], []), ("q3", ["p3"], [])]
    for name in ("queries", "documents", "document_queries"):
        assert term(name, rows) == [[0, 0, 1], [0, 0, 1], [1, 1, 0]], name


def test_repeated_queries_count_once() -> None:
    rows: list[Row] = [("q", ["p1"], []), ("q", ["p2"], []), ("r", ["p3"], [])]
    assert term("queries", rows) == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_rows_of_one_class_are_no_negatives_of_each_other() -> None:
    rows: list[Row] = [("q1", ["p1"], ["n1"]), ("q2", ["p2"], ["n2"]), ("q3", ["p3"], [])]
    assert term("other_positives", rows, [7, 7, 8]) == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert term("queries", rows, [7, 7, 8]) == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert term("own_negatives", rows, [7, 7, 8]) == [[1, 0], [0, 1], [0, 0]]


def test_a_hard_negative_of_a_row_of_another_class_may_be_of_the_rows_own() -> None:
    """n1 is of any class but 7: a negative for both rows of class 7, unknown to the row of 8."""
    rows: list[Row] = [("q1", ["p1"], ["n1"]), ("q2", ["p2"], ["n2"]), ("q3", ["p3"], ["n3"])]
    assert term("other_negatives", rows, [7, 7, 8]) == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_rows_that_share_one_of_several_classes_are_no_negatives_of_each_other() -> None:
    rows: list[Row] = [("q1", ["p1"], []), ("q2", ["p2"], []), ("q3", ["p3"], [])]
    classes = [[7, 8], [8, 9], [9, 9]]
    assert term("other_positives", rows, classes) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert term("queries", rows, classes) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_a_hard_negative_is_safe_for_rows_whose_classes_are_all_its_owners() -> None:
    """n1 is of none of 7 and 8; so it is no 7, but it may be a 9."""
    rows: list[Row] = [("q1", ["p1"], ["n1"]), ("q2", ["p2"], []), ("q3", ["p3"], [])]
    assert term("other_negatives", rows, [[7, 8], [7, 7], [7, 9]]) == [[0], [1], [0]]


@pytest.mark.parametrize(
    "name",
    ["own_negatives", "other_positives", "other_negatives", "queries", "documents"],
)
def test_slices_of_rows_add_up_to_the_whole(name: Term) -> None:
    rng = np.random.default_rng(0)
    rows: list[Row] = [
        (
            f"q{rng.integers(6)}",
            [f"p{rng.integers(6)}", f"p{rng.integers(6)}"],
            [f"n{rng.integers(4)}"],
        )
        for _ in range(9)
    ]
    mask, whole, sliced = TextMask(batch_of(rows)), MaskCounts(), MaskCounts()
    expected = mask.allowed([name], slice(0, 9), whole)[name]
    parts = [mask.allowed([name], slice(s, s + 3), sliced)[name] for s in (0, 3, 6)]
    assert (np.vstack(parts) == expected).all()
    assert sliced == whole


def test_hashes_are_stable_64_bit_numbers() -> None:
    """Stored nowhere, but two processes of one training must agree (blake2b, not hash())."""
    assert text_hashes(["Самовар"]).tolist() == text_hashes(["самовар"]).tolist()
    assert text_hashes(["samovar"]).dtype == np.int64
    assert text_hashes(["samovar"]).tolist() == [2201395484098170131]  # b2sum -l 64


def test_no_texts_give_no_hashes() -> None:
    assert text_hashes([]).tolist() == []
