"""Positives and negatives of labelled rows."""

from collections import Counter

import pytest

from tasks.ingest.classes import ClassPairs


def pairs(labels: list[str], seed: int = 1) -> ClassPairs:
    return ClassPairs(
        [f"id{row}" for row in range(len(labels))], [list(own) for own in labels], seed
    )


def test_the_positive_is_another_row_of_the_class() -> None:
    labels = ["a", "b"] * 50
    own = pairs(labels)
    for row in range(100):
        other = own.positive(row)
        assert other is not None
        assert other != row
        assert labels[other] == labels[row]


def test_every_other_member_is_drawn_about_equally_often() -> None:
    """Chi-squared with 2 degrees of freedom stays below 13.8 in 99.9 % of the cases."""
    ids = [f"id{row}" for row in range(4)]
    counts = Counter(ClassPairs(ids, [["a"]] * 4, seed).positive(0) for seed in range(3000))
    assert set(counts) == {1, 2, 3}
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 13.8


def test_a_class_of_one_has_no_positive() -> None:
    assert pairs(["a", "b", "b"]).positive(0) is None


def test_a_positive_with_the_same_set_of_labels_goes_before_one_that_shares_a_label() -> None:
    own = pairs(["ab", "a", "b", "ab", "a"])
    assert own.positive(0) == 3


def test_without_the_same_set_the_rarest_label_is_shared() -> None:
    assert pairs(["ab", "a", "a", "a", "b"]).positive(0) == 4


def test_negatives_share_no_label_and_stand_once() -> None:
    labels = ["ab", "a", "b", "c", "cd", "bd", "d", "c"]
    negatives = pairs(labels).negatives(0, 3)
    assert len(set(negatives)) == 3
    assert set(negatives) <= {3, 4, 6, 7}


def test_all_negatives_are_given_where_there_are_too_few() -> None:
    assert sorted(pairs(["a", "b", "a", "c"]).negatives(0, 7)) == [1, 3]
    assert pairs(["a", "a"]).negatives(0, 7) == []


def test_the_rare_negatives_of_a_huge_class_are_found() -> None:
    labels = ["a"] * 20_000 + ["b", "c"]
    own = pairs(labels)
    for row in (0, 1, 19_999):
        assert sorted(own.negatives(row, 7)) == [20_000, 20_001]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_choice_depends_on_the_seed_alone(seed: int) -> None:
    labels = ["a", "b", "c"] * 30
    chosen = [pairs(labels, seed).negatives(row, 5) for row in range(90)]
    assert chosen == [pairs(labels, seed).negatives(row, 5) for row in range(90)]
    assert chosen != [pairs(labels, seed + 1).negatives(row, 5) for row in range(90)]
