"""Batches: order, tokens, draws and micro-batches, all a function of the seed and the step."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.encoder.encoder import Encoder
from model.losses.masks import MaskCounts, TextMask, text_hashes
from model.training.data import sorting
from model.training.data.batches import Batch, BatchPlan, Ragged, prepare_orders
from model.training.data.order import SourceOrder, draw_sources, source_shares, spread_order
from model.training.devices.team import Team
from model.training.settings import TrainingSource, TrainSettings

SETTINGS = TrainSettings(
    max_steps=12,
    batch_size=4,
    micro_batch_tokens=1000,
    max_length_tokens=40,
    learning_rate=1e-3,
    min_learning_rate_share=0.1,
    warmup_steps=0,
    weight_decay=0.0,
    gradient_clip_norm=1.0,
    loss="giga",
    temperature=0.05,
    margin_from_step=1,
    hard_negatives=2,
    matryoshka_dims=(),
    source_temperature=1.0,
    precision="fp32",
    log_every_steps=1,
    checkpoint_every_steps=100,
    seed=3,
)


def source_of(rows: list[tuple[str, list[str], list[str]]], **fields: object) -> TrainingSource:
    table = pa.table(
        {
            "id": [f"row-{number}" for number in range(len(rows))],
            "query": [query for query, _, _ in rows],
            "positives": pa.array([positives for _, positives, _ in rows], pa.list_(pa.string())),
            "negatives": pa.array([negatives for _, _, negatives in rows], pa.list_(pa.string())),
            "score": pa.array([number / 10 for number in range(len(rows))], pa.float32()),
        }
    )
    defaults = {
        "name": "s",
        "task": "retrieval",
        "prompt": "",
        "document_prompt": "",
        "weight": 1.0,
    }
    return TrainingSource(**{**defaults, **fields, "table": table, "weight": 1.0})  # pyright: ignore[reportArgumentType]  # fields of the tests are right


def plan_of(
    encoder: Encoder, folder: Path, source: TrainingSource, settings: TrainSettings = SETTINGS
) -> BatchPlan:
    steps_of = np.zeros(settings.max_steps, dtype=int)
    return BatchPlan([source], steps_of, settings, encoder, folder)


def texts_of(encoder: Encoder, batch: Batch) -> list[str]:
    return [encoder.tokenizer.decode(item.ids, skip_special_tokens=True) for item in batch.items]


ROWS: list[tuple[str, list[str], list[str]]] = [
    (f"вопрос {n}", [f"ответ {n}"], [f"мимо {n} {k}" for k in range(n % 4)]) for n in range(10)
]


# ---- order


def test_an_epoch_visits_each_row_once_and_epochs_differ() -> None:
    order = SourceOrder("s", np.arange(12), batch_size=4, seed=1)
    epochs = [[order.rows_of_visit(3 * epoch + k).tolist() for k in range(3)] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(12))
    assert epochs[0] != epochs[1]


def test_visits_do_not_depend_on_what_was_asked_before() -> None:
    forward = SourceOrder("s", np.arange(10), batch_size=3, seed=1)
    asked = [forward.rows_of_visit(visit).tolist() for visit in range(9)]
    jump = SourceOrder("s", np.arange(10), batch_size=3, seed=1)
    assert [jump.rows_of_visit(visit).tolist() for visit in reversed(range(9))] == asked[::-1]


def test_sources_of_one_seed_are_walked_in_different_orders() -> None:
    one, other = (SourceOrder(name, np.arange(50), batch_size=50, seed=1) for name in "ab")
    assert one.rows_of_visit(0).tolist() != other.rows_of_visit(0).tolist()


def test_a_source_smaller_than_the_batch_gives_all_its_rows() -> None:
    order = SourceOrder("s", np.arange(3), batch_size=8, seed=1)
    assert sorted(order.rows_of_visit(0).tolist()) == [0, 1, 2]
    assert sorted(order.rows_of_visit(5).tolist()) == [0, 1, 2]


def test_rows_that_share_a_positive_fall_into_different_batches() -> None:
    groups = np.repeat(np.arange(100), 3)
    order = SourceOrder("s", groups, batch_size=20, seed=1)
    repeats = [20 - len(set(groups[order.rows_of_visit(visit)])) for visit in range(15)]
    plain = np.random.default_rng(0).permutation(groups).reshape(15, 20)
    assert sum(repeats) == 0
    assert sum(20 - len(set(batch)) for batch in plain) > 0, "the premise: chance repeats some"


def test_every_row_is_as_likely_early_as_late() -> None:
    groups = np.array([0, 0, 0, 0, 1, 2, 2, 3])
    places = np.zeros(8)
    for seed in range(4000):
        places[spread_order(groups, np.random.default_rng(seed))] += np.arange(8)
    assert np.abs(places / 4000 - 3.5).max() < 0.15


def plain_spread_order(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The order by its definition, with int64 and full argsorts."""
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(groups))
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[by_group] = np.arange(len(groups)) - (np.cumsum(counts) - counts)[groups[by_group]]
    places = (rng.random(len(counts))[groups] + ranks / counts[groups]) % 1.0
    return np.argsort(places, kind="stable")


@pytest.mark.parametrize("at_once", [3, 1 << 20])
@pytest.mark.parametrize("groups", [1, 7, 60, 5000])
def test_the_order_is_that_of_its_definition(
    groups: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "ROWS_AT_ONCE", at_once)
    drawn = np.random.default_rng(groups).integers(0, groups, 400)
    numbers = np.unique(drawn, return_inverse=True)[1].astype(np.uint32)
    found = spread_order(numbers, np.random.default_rng(5))
    assert found.dtype == np.uint32
    assert found.tolist() == plain_spread_order(numbers, np.random.default_rng(5)).tolist()


def test_the_order_of_the_epoch_is_found_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def order() -> SourceOrder:
        return SourceOrder("s", np.arange(10), batch_size=5, seed=1, folder=tmp_path)

    assert not order().is_kept
    first = order()
    rows = [first.rows_of_visit(visit).tolist() for visit in range(4)]
    assert [path.name for path in tmp_path.iterdir()] == ["order-1-1.npy"], "one epoch at a time"
    in_memory = SourceOrder("s", np.arange(10), batch_size=5, seed=1)
    assert rows == [in_memory.rows_of_visit(visit).tolist() for visit in range(4)]
    monkeypatch.setattr("model.training.data.order.spread_order", None)
    assert order().is_kept
    assert order().rows_of_visit(3).tolist() == rows[3]


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (0.5, 0.75), (1e-9, 0.5)])
def test_source_share_is_weight_times_rows_to_the_temperature(
    temperature: float, share: float
) -> None:
    drawn = draw_sources([900, 100], [1.0, 1.0], temperature=temperature, max_steps=20_000, seed=5)
    assert np.mean(drawn == 0) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_shares_are_the_closed_form(temperature: float) -> None:
    rows, weights = [900, 100, 25], [1.0, 4.0, 0.5]
    sizes = [w * math.pow(n, temperature) for n, w in zip(rows, weights, strict=True)]
    expected = [size / sum(sizes) for size in sizes]
    assert source_shares(rows, weights, temperature).tolist() == pytest.approx(expected)


def test_at_temperature_0_the_weights_are_an_explicit_list_of_shares() -> None:
    shares = source_shares([10**7, 10, 500], [0.5, 0.3, 0.2], 0.0)
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2])
    drawn = draw_sources([10**7, 10, 500], [5, 3, 2], temperature=0.0, max_steps=20_000, seed=5)
    assert (np.bincount(drawn) / 20_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


# ---- batches


def test_a_batch_holds_queries_then_positives_then_hard_negatives(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    batch = plan_of(pico_encoder, tmp_path, source_of(ROWS)).batch(1)
    texts = texts_of(pico_encoder, batch)
    numbers = [int(row.removeprefix("row-")) for row in batch.row_ids]
    assert texts[:4] == [f"вопрос {n}" for n in numbers]
    assert texts[4:8] == [f"ответ {n}" for n in numbers]
    owners = batch.texts.owners.tolist()
    assert owners[:4] == [0, 1, 2, 3]
    for text, owner in zip(texts[8:], owners[4:], strict=True):
        assert text.startswith(f"мимо {numbers[owner]} ")


def test_a_row_with_few_negatives_gives_what_it_has_and_never_its_positive(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, batch_size=10, hard_negatives=2)
    batch = plan_of(pico_encoder, tmp_path, source_of(ROWS), settings).batch(1)
    owners = batch.texts.owners[10:]
    for place, row in enumerate(batch.row_ids):
        assert (owners == place).sum() == min(2, int(row.removeprefix("row-")) % 4)
    assert len(set(texts_of(pico_encoder, batch))) == len(batch.items)


def test_positives_and_negatives_are_drawn_anew_but_equal_for_equal_steps(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    rows = [(f"q{n}", [f"p{n}{k}" for k in "abcd"], [f"n{n}{k}" for k in "abcd"]) for n in range(4)]
    plan = plan_of(pico_encoder, tmp_path, source_of(rows))
    drawn = [frozenset(texts_of(pico_encoder, plan.batch(step))) for step in range(1, 9)]
    assert len(set(drawn)) > 4
    again = plan_of(pico_encoder, tmp_path / "again", source_of(rows))
    assert frozenset(texts_of(pico_encoder, again.batch(6))) == drawn[5]


def test_positives_that_were_not_drawn_are_known_to_the_mask(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    rows = [("q0", ["общий", "свой"], []), ("q1", ["общий"], [])]
    settings = dataclasses.replace(SETTINGS, batch_size=2)
    plan = plan_of(pico_encoder, tmp_path, source_of(rows), settings)
    for step in range(1, 9):
        mask = TextMask(plan.batch(step).texts)
        allowed = mask.allowed(["other_positives"], slice(0, 2), MaskCounts())["other_positives"]
        asked = [row == "row-0" for row in plan.batch(step).row_ids].index(True)
        assert not allowed[asked, 1 - asked]


def test_prompts_stand_before_the_texts_and_not_in_their_hashes(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    source = source_of(ROWS, prompt="Задача: ", document_prompt="Текст: ", task="classification")
    batch = plan_of(pico_encoder, tmp_path, source).batch(1)
    texts = texts_of(pico_encoder, batch)
    assert all(text.startswith("Задача: вопрос") for text in texts[:4])
    assert all(text.startswith("Текст: ") for text in texts[4:])
    assert all(item.prompt_tokens > 0 for item in batch.items)
    bare = [text.removeprefix("Задача: ") for text in texts[:4]]
    assert batch.texts.queries.tolist() == text_hashes(bare).tolist()


def test_graded_rows_bring_their_scores_and_no_negatives(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    batch = plan_of(pico_encoder, tmp_path, source_of(ROWS, task="sts")).batch(1)
    assert batch.scores is not None
    expected = [int(row.removeprefix("row-")) / 10 for row in batch.row_ids]
    assert batch.scores.tolist() == pytest.approx(expected)
    assert len(batch.items) == 8


def with_scores(source: TrainingSource) -> TrainingSource:
    """Scores that tell their text: of `ответ 3`, 3; of `мимо 3 1`, 3.1; row 2 has none."""
    rows = source.table.num_rows
    positives = [None if row == 2 else [float(row)] for row in range(rows)]
    negatives = [
        None if row == 2 else [row + k / 10 for k in range(len(own))]
        for row, own in enumerate(source.table["negatives"].to_pylist())
    ]
    table = source.table
    for name, scores in (("positive_scores", positives), ("negative_scores", negatives)):
        table = table.append_column(name, pa.array(scores, pa.list_(pa.float32())))
    return dataclasses.replace(source, table=table)


def test_teacher_scores_come_with_the_texts_they_are_of(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    plan = plan_of(pico_encoder, tmp_path, with_scores(source_of(ROWS)))
    unknown = 0
    for step in range(1, 7):
        batch = plan.batch(step)
        texts = [plain.text for plain in batch.plain_texts[batch.num_queries :]]
        for text, score in zip(texts, batch.teacher_scores.tolist(), strict=True):
            row, *rest = (int(number) for number in text.split()[1:])
            unknown += row == 2
            expected = np.nan if row == 2 else row + sum(rest) / 10
            assert score == pytest.approx(expected, nan_ok=True), text
    assert unknown > 0, "the premise: the row without scores is drawn"


def test_without_score_columns_every_score_is_unknown(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    batch = plan_of(pico_encoder, tmp_path, source_of(ROWS)).batch(1)
    assert np.isnan(batch.teacher_scores).all()
    assert len(batch.teacher_scores) == len(batch.texts.documents)


def test_scores_of_more_texts_than_there_are_are_refused(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    source = with_scores(source_of(ROWS))
    place = source.table.schema.get_field_index("negative_scores")
    wrong = pa.array([[0.5, 0.5]] * len(ROWS), pa.list_(pa.float32()))
    table = source.table.set_column(place, "negative_scores", wrong)
    with pytest.raises(ValueError, match="negative_scores and negatives differ in number"):
        plan_of(pico_encoder, tmp_path, dataclasses.replace(source, table=table)).batch(1)


def test_drawn_places_are_the_drawn_texts() -> None:
    """Scores need places; the texts drawn from a seed are those of ever before."""
    texts = [[f"{row}-{k}" for k in range(count)] for row, count in enumerate((7, 0, 23))]
    ragged = Ragged.of(pa.chunked_array([pa.array(texts, pa.list_(pa.string()))]))
    for row, own in enumerate(texts):
        for seed in range(5):
            expected = np.random.default_rng(seed).permutation(own)[:4].tolist() if own else []
            places = ragged.draw(row, 4, np.random.default_rng(seed))
            assert [ragged.texts[place] for place in places] == expected


@pytest.mark.parametrize("task", ["classification", "clustering", "retrieval", "sts"])
def test_rows_of_classes_bring_their_labels(
    pico_encoder: Encoder, tmp_path: Path, task: str
) -> None:
    source = source_of(ROWS, task=task)
    labels = pa.array([str(row % 3) for row in range(len(ROWS))])
    table = source.table.append_column("label", labels)
    batch = plan_of(pico_encoder, tmp_path, dataclasses.replace(source, table=table)).batch(1)
    if task in {"retrieval", "sts"}:
        assert batch.texts.classes is None
        return
    assert batch.texts.classes is not None
    numbers = [int(row.removeprefix("row-")) % 3 for row in batch.row_ids]
    for i, j in itertools.product(range(4), repeat=2):
        assert (batch.texts.classes[i] == batch.texts.classes[j]) == (numbers[i] == numbers[j])


def test_texts_are_cut_to_the_length_of_the_stage(pico_encoder: Encoder, tmp_path: Path) -> None:
    rows = [(f"вопрос {n} " * 50, ["ответ " * 50], []) for n in range(4)]
    batch = plan_of(pico_encoder, tmp_path, source_of(rows)).batch(1)
    assert {len(item.ids) for item in batch.items} == {40}


def test_null_negatives_are_no_negatives(pico_encoder: Encoder, tmp_path: Path) -> None:
    source = source_of(ROWS[:4])
    nulls = pa.array([None, ["a"], None, ["b", "c"]], pa.list_(pa.string()))
    table = source.table.set_column(3, "negatives", nulls)
    batch = plan_of(pico_encoder, tmp_path, dataclasses.replace(source, table=table)).batch(1)
    assert sorted(texts_of(pico_encoder, batch)[8:]) == ["a", "b", "c"]


def test_a_table_in_several_chunks_gives_the_same_batches(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    whole = source_of(ROWS)
    chunks = pa.concat_tables([whole.table.slice(0, 3), whole.table.slice(3)])
    split = dataclasses.replace(whole, table=chunks)
    batches = [
        plan_of(pico_encoder, tmp_path / name, source).batch(2)
        for name, source in (("whole", whole), ("split", split))
    ]
    assert batches[0].items == batches[1].items


def test_batches_made_ahead_are_those_made_when_asked(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    plan = plan_of(pico_encoder, tmp_path, source_of(ROWS))
    alone = [plan.batch(step) for step in range(1, 13)]
    with plan.prepared_ahead():
        ahead = [plan.batch(step) for step in (*range(1, 13), 12)]
    resumed = plan_of(pico_encoder, tmp_path, source_of(ROWS))
    with resumed.prepared_ahead():
        later = [resumed.batch(step) for step in range(7, 13)]
    for one, other in zip(alone + alone[6:], ahead[:12] + later, strict=True):
        assert one.items == other.items
        assert one.row_ids == other.row_ids
        assert one.texts.known_positives.tolist() == other.texts.known_positives.tolist()
    assert ahead[12].items == alone[11].items, "a step that is taken again"


def test_another_table_of_the_same_name_finds_no_order_of_the_first(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    rows = [(f"q{n}", [f"p{n % 2}"], []) for n in range(8)]
    for table in (ROWS[:8], rows):
        apart = plan_of(pico_encoder, tmp_path / "apart", source_of(table)).batch(1)
        after = plan_of(pico_encoder, tmp_path / "shared", source_of(table)).batch(1)
        assert apart.row_ids == after.row_ids


def test_orders_prepared_before_are_those_of_the_plan(
    pico_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plan_of(pico_encoder, tmp_path / "own", source_of(ROWS)).batch(2).items
    prepare_orders([source_of(ROWS)], SETTINGS, tmp_path, Team())
    monkeypatch.setattr("model.training.data.order.spread_order", None)
    monkeypatch.setattr("model.training.data.batches.group_rows", None)
    assert plan_of(pico_encoder, tmp_path / "rows", source_of(ROWS)).batch(2).items == expected
