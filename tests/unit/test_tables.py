"""What a run shows of gate and champion."""

from flows.show import tables

TASKS = [{"task": "SampleSTS", "champion": None, "candidate": 0.25, "change": None}]
FIRST = {"publish": True, "reasons": ["No champion."], "champion": None, "tasks": TASKS}


def test_without_a_champion_the_ladder_has_no_row_of_it() -> None:
    assert tables.champion_row(FIRST) is None


def test_a_task_the_champion_was_not_scored_on_is_left_empty() -> None:
    decision = FIRST | {"champion": {"version": "v0002", "mean": 0.5}}
    row = {"rung": "champion v0002", "mean": "50.0", "SampleSTS": ""}
    assert tables.champion_row(decision) == row


def test_a_model_that_is_held_back_says_why() -> None:
    text = tables.gate_text(FIRST | {"publish": False, "reasons": ["Worse.", "Much."]})
    assert text.splitlines() == ["**The gate holds it back**", "", "- Worse.", "- Much."]


def test_a_cell_of_markdown_is_one_line_without_the_mark_of_a_column() -> None:
    rows = [
        {"started": 1, "result": "failed: a | b\nand all that follows"},
        {"started": 2, "result": ""},
    ]
    assert tables.markdown_table(rows).splitlines() == [
        "| started | result |",
        "| --- | --- |",
        "| 1 | failed: a / b and all that follows |",
        "| 2 |  |",
    ]
