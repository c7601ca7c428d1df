"""Steps of rows from several sources: what they hold, and the loss of their sub-batches."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from model.encoder.encoder import Encoder
from model.losses.false_negatives import FalseNegativeSettings
from model.losses.masks import MaskCounts, TextMask
from model.training.data.batches import Batch, BatchPlan, Step
from model.training.data.composition import Mixture, draw_steps
from model.training.data.order import SourceOrder, source_shares
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.team import Team
from model.training.objective.frozen import FrozenModel, FrozenModels, FrozenVectors
from model.training.objective.loss_options import (
    DivergenceSettings,
    LossOptions,
    MatchingSettings,
    TripletSettings,
)
from model.training.objective.objective import Objective, objective_of
from model.training.objective.sub_batches import SumObjective, objective_of_sub_batches
from model.training.settings import LossSettings, TrainingSource, TrainSettings
from model.training.step_log import read_records
from model.training.trainer import train
from tests.unit.test_batches import SETTINGS

MIXED = dataclasses.replace(SETTINGS, batches="mixed", batch_size=12, source_temperature=0.5)
INTERLEAVED = dataclasses.replace(SETTINGS, batches="interleaved", batch_size=12, sub_batches=3)
LOSS = LossSettings("giga", 0.05, hardness={"own_negatives": 5.0}, spread_out=0.5)


def source(name: str, task: str, rows: int) -> TrainingSource:
    table = pa.table(
        {
            "id": [f"{name}-{row}" for row in range(rows)],
            "query": [f"{name} вопрос {row}" for row in range(rows)],
            "positives": [[f"{name} ответ {row}", f"ответ {row % 5}"] for row in range(rows)],
            "negatives": [
                [f"{name} мимо {row} {k}" for k in range(row % 4)] for row in range(rows)
            ],
            "score": pa.array([row / rows for row in range(rows)], pa.float32()),
        }
    )
    return TrainingSource(name, task, f"{name}: ", "", table, 1.0)


SOURCES = [
    source("pairs", "retrieval", 40),
    source("titles", "bitext", 23),
    source("classes", "classification", 12),
    source("clusters", "clustering", 9),
    source("grades", "sts", 17),
]


def plan_of(encoder: Encoder, folder: Path, settings: TrainSettings) -> BatchPlan:
    return BatchPlan(SOURCES, draw_steps(SOURCES, settings), settings, encoder, folder)


def source_name(row_id: str) -> str:
    return row_id.split("-")[0]


# ---- what a step holds


def test_a_mixed_step_has_one_part_per_kind_of_loss(pico_encoder: Encoder, tmp_path: Path) -> None:
    plan = plan_of(pico_encoder, tmp_path, MIXED)
    kinds = {("classes", "clusters"): 0, ("pairs", "titles"): 0, ("grades",): 0}
    for step in range(1, 13):
        made = plan.step(step)
        assert made.source == "mixed"
        assert made.num_queries == 12
        for part in made.sub_batches:
            names = {source_name(row) for row in part.row_ids}
            [kind] = [kind for kind in kinds if names <= set(kind)]
            kinds[kind] += len(names)
            assert part.is_in_batch == (kind == ("pairs", "titles"))
            assert (part.scores is not None) == (kind == ("grades",))
    assert min(kinds.values()) > 6, "the premise: every kind was drawn, of several sources"


def test_every_row_of_a_mixed_batch_has_the_prompt_of_its_source(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    step = plan_of(pico_encoder, tmp_path, MIXED).step(1)
    for part in step.sub_batches:
        for row, item in zip(part.row_ids, part.items, strict=False):
            name, number = row.split("-")
            text = pico_encoder.tokenizer.decode(item.ids, skip_special_tokens=True)
            assert text == f"{name}: {name} вопрос {number}"
            assert item.prompt_tokens > 0


def test_documents_of_a_mixed_batch_keep_their_owners(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    plan = plan_of(pico_encoder, tmp_path, MIXED)
    seen = 0
    for part in (part for step in range(1, 6) for part in plan.step(step).sub_batches):
        rows = part.num_queries
        assert part.texts.owners[:rows].tolist() == list(range(rows))
        assert len(part.texts.documents) == len(part.texts.owners) == len(part.items) - rows
        for item, owner in zip(part.items[2 * rows :], part.texts.owners[rows:], strict=True):
            name, number = part.row_ids[owner].split("-")
            assert pico_encoder.tokenizer.decode(item.ids, skip_special_tokens=True).startswith(
                f"{name} мимо {number} "
            )
            seen += 1
    assert seen > 10


def test_a_positive_shared_by_rows_of_two_sources_is_no_negative(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    """Rows of equal number modulo 5 share a positive, within a source and across."""
    plan, checked = plan_of(pico_encoder, tmp_path, MIXED), 0
    for part in (part for step in range(1, 13) for part in plan.step(step).sub_batches):
        if not part.is_in_batch:
            continue
        rows = slice(0, part.num_queries)
        allowed = TextMask(part.texts).allowed(["other_positives"], rows, MaskCounts())
        for one, row in enumerate(part.row_ids):
            for other, text in enumerate(part.items[part.num_queries : 2 * part.num_queries]):
                shared = f"ответ {int(row.split('-')[1]) % 5}"
                if pico_encoder.tokenizer.decode(text.ids, skip_special_tokens=True) == shared:
                    assert not allowed["other_positives"][one, other]
                    checked += source_name(row) != source_name(part.row_ids[other])
    assert checked > 0, "the premise: some were of two sources"


def test_interleaved_steps_hold_sub_batches_of_one_source_each(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    plan = plan_of(pico_encoder, tmp_path, INTERLEAVED)
    drawn = draw_steps(SOURCES, INTERLEAVED)
    for step in range(1, 13):
        made = plan.step(step)
        assert [part.num_queries for part in made.sub_batches] == [4, 4, 4]
        names = [{source_name(row) for row in part.row_ids} for part in made.sub_batches]
        assert names == [{SOURCES[number].name} for number in drawn[step - 1]]


@pytest.mark.parametrize("settings", [MIXED, INTERLEAVED], ids=lambda value: value.batches)
def test_steps_depend_on_seed_and_step_alone(
    pico_encoder: Encoder, tmp_path: Path, settings: TrainSettings
) -> None:
    forward = plan_of(pico_encoder, tmp_path / "forward", settings)
    steps = [forward.step(step).row_ids for step in range(1, 13)]
    resumed = plan_of(pico_encoder, tmp_path / "resumed", settings)
    assert [resumed.step(step).row_ids for step in range(12, 0, -1)] == steps[::-1]
    items = [part.items for part in resumed.step(7).sub_batches]
    assert items == [part.items for part in forward.step(7).sub_batches]


def test_a_mixture_walks_each_source_without_repeating_a_row_in_an_epoch() -> None:
    orders = [SourceOrder(name, np.arange(rows), 8, seed=1) for name, rows in (("a", 30), ("b", 5))]
    wanted = np.random.default_rng(0).multinomial(8, [0.7, 0.3], size=60)
    mixture = Mixture(orders, wanted)
    for number, rows in enumerate((30, 5)):
        taken = [
            draw.rows.tolist()
            for step in range(1, 61)
            for draw in mixture.draws(step)
            if draw.source == number
        ]
        counts = [count for count in np.minimum(wanted[:, number], rows).tolist() if count]
        assert [len(part) for part in taken] == counts
        epoch, seen = 0, 0
        for part in taken:
            if seen + len(part) > rows:
                epoch, seen = epoch + 1, 0
            assert part == orders[number].rows(epoch, seen, len(part)).tolist()
            seen += len(part)
        assert epoch > 1


def test_rows_of_a_mixture_are_drawn_by_the_shares_of_the_sources() -> None:
    settings = dataclasses.replace(MIXED, max_steps=4000)
    counts = draw_steps(SOURCES, settings)
    assert (counts.sum(axis=1) == 12).all()
    rows = [each.table.num_rows for each in SOURCES]
    share = source_shares(rows, [1.0] * 5, 0.5)
    assert (counts.mean(axis=0) / 12).tolist() == pytest.approx(share.tolist(), abs=0.01)


def with_scores_and_labels(plain: TrainingSource) -> TrainingSource:
    """Scores that tell the row and the place of their text; labels that both sources share."""
    table = plain.table.append_column(
        "label", pa.array([str(row % 3) for row in range(plain.table.num_rows)])
    )
    for name, base in (("positive", 0.0), ("negative", 0.5)):
        lists = plain.table[f"{name}s"].to_pylist()
        scores = [[row + base + k / 10 for k in range(len(own))] for row, own in enumerate(lists)]
        column = pa.array(scores, pa.list_(pa.float32()))
        table = table.append_column(f"{name}_scores", column)
    return dataclasses.replace(plain, table=table)


SCORED = [with_scores_and_labels(each) for each in SOURCES]


def scored_steps(encoder: Encoder, folder: Path) -> list[Step]:
    plan = BatchPlan(SCORED, draw_steps(SCORED, MIXED), MIXED, encoder, folder)
    return [plan.step(number) for number in range(1, 9)]


def test_scores_and_plain_texts_of_a_mixed_batch_stay_with_their_items(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    negatives = 0
    for part in (
        part for step in scored_steps(pico_encoder, tmp_path) for part in step.sub_batches
    ):
        rows = part.num_queries
        for item, (prompt, text, _) in zip(part.items, part.plain_texts, strict=True):
            assert (
                pico_encoder.tokenizer.decode(item.ids, skip_special_tokens=True) == prompt + text
            )
        documents = [plain.text for plain in part.plain_texts[rows:]]
        scores = part.teacher_scores.tolist()
        for owner, text, score in zip(part.texts.owners, documents, scores, strict=True):
            name, number = part.row_ids[owner].split("-")
            row, is_negative = int(number), "мимо" in text
            places = [f"{name} мимо {row} {k}" for k in range(5)]
            places = places if is_negative else [f"{name} ответ {row}", f"ответ {row % 5}"]
            expected = row + 0.5 * is_negative + places.index(text) / 10
            assert score == pytest.approx(expected)
            negatives += is_negative
    assert negatives > 10


def test_classes_of_a_mixed_batch_are_equal_where_source_and_label_are(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    of_several = 0
    for part in (
        part for step in scored_steps(pico_encoder, tmp_path) for part in step.sub_batches
    ):
        names = {source_name(row) for row in part.row_ids}
        if not names <= {"classes", "clusters"}:
            assert part.texts.classes is None
            continue
        assert part.texts.classes is not None
        keys = [(source_name(row), int(row.split("-")[1]) % 3) for row in part.row_ids]
        equal = [[one == other for other in keys] for one in keys]
        classes = part.texts.classes[:, 0]
        assert (classes[:, None] == classes[None, :]).tolist() == equal
        of_several += len(names) > 1
    assert of_several > 0, "the premise"


# ---- the loss of a step


def objectives(parts: list[Batch]) -> list[Objective]:
    return [
        objective_of(
            part, is_in_batch=part.is_in_batch, loss=LOSS, sizes=[32, 8], device=torch.device("cpu")
        )
        for part in parts
    ]


def gradient_of(
    encoder: Encoder, step: Step, objective: Objective | SumObjective, *, cached: bool
) -> tuple[float, list[Tensor]]:
    size = 7 if cached else len(step.items)
    texts = list(range(len(step.items)))
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    encoder.zero_grad()
    loss = (cached_backward if cached else plain_backward)(
        lambda part: encoder.embed([step.items[text] for text in part]),
        parts, len(step.items), objective.loss_and_gradient, Team(),
    )  # fmt: skip
    return loss.item(), [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("settings", [MIXED, INTERLEAVED], ids=lambda value: value.batches)
def test_loss_and_gradient_are_those_of_the_parts_weighted_by_their_rows(
    pico_encoder: Encoder, tmp_path: Path, settings: TrainSettings, cached: bool
) -> None:
    """Each part embedded and scored alone, with Matryoshka sizes and hard negatives."""
    step = plan_of(pico_encoder, tmp_path, settings).step(2)
    assert len(step.sub_batches) == 3
    expected_loss, expected = 0.0, [torch.zeros_like(p) for p in pico_encoder.parameters()]
    counts = {"in_batch_negatives": 0.0, "hard_negatives": 0.0, "masked_share": 0.0}
    for part, objective in zip(step.sub_batches, objectives(step.sub_batches), strict=True):
        alone = Step(step.source, [part])
        loss, gradient = gradient_of(pico_encoder, alone, objective, cached=False)
        weight = part.num_queries / step.num_queries
        expected_loss += weight * loss
        for total, own in zip(expected, gradient, strict=True):
            total += weight * own
        for name in counts:
            counts[name] += weight * getattr(objective.report(Team()), name)
    whole = objective_of_sub_batches(
        step.sub_batches, loss=LOSS, sizes=[32, 8], device=torch.device("cpu")
    )
    loss, gradient = gradient_of(pico_encoder, step, whole, cached=cached)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for found, wanted in zip(gradient, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    report = whole.report(Team())
    assert {name: getattr(report, name) for name in counts} == pytest.approx(counts)


EVERYTHING = LossOptions(
    guide=FalseNegativeSettings(margin=-0.02, explicit=True, except_terms=()),
    soft_labels=DivergenceSettings(0.7, teacher_temperature=0.1),
    triplet=TripletSettings(3.0, margin=0.2),
    embeddings=MatchingSettings(2.0, size=8),
    similarities=DivergenceSettings(0.7, teacher_temperature=0.1),
)


@pytest.mark.parametrize("class_negatives", ["own", "batch"])
def test_guide_and_teacher_are_asked_once_and_each_part_gets_what_they_say_of_it(
    pico_encoder: Encoder, tmp_path: Path, class_negatives: Literal["own", "batch"]
) -> None:
    step, team = scored_steps(pico_encoder, tmp_path)[1], Team()
    assert len(step.sub_batches) == 3
    other = FrozenModel(pico_encoder, "найди: ", None, max_length_tokens=40)
    models, loss = FrozenModels(other, other), dataclasses.replace(LOSS, options=EVERYTHING)
    arguments: dict[str, Any] = {
        "loss": loss, "sizes": [32, 8], "device": torch.device("cpu"),
        "class_negatives": class_negatives,
    }  # fmt: skip

    def vectors(asked: Step) -> FrozenVectors:
        return models.vectors(asked, range(len(asked.items)), team, 200, "fp32")

    whole = objective_of_sub_batches(step.sub_batches, frozen=vectors(step), **arguments)
    found, gradient = gradient_of(pico_encoder, step, whole, cached=True)
    expected: Counter[str] = Counter()
    total, labelled, in_batch = 0.0, 0, 0.0
    weights = [torch.zeros_like(own) for own in gradient]
    for part in step.sub_batches:
        alone = Step(step.source, [part])
        made = objective_of_sub_batches([part], frozen=vectors(alone), **arguments)
        value, own_gradient = gradient_of(pico_encoder, alone, made, cached=False)
        share = part.num_queries / step.num_queries
        total += share * value
        told = made.report(Team())
        for name, own in told.losses.items():
            expected[name] += share * own
        for weight, own in zip(weights, own_gradient, strict=True):
            weight += share * own
        labelled += told.soft_label_rows
        in_batch += part.num_queries * told.in_batch_negatives * (part.texts.classes is not None)
    report = whole.report(Team())
    assert found == pytest.approx(total, rel=1e-5)
    assert report.losses == pytest.approx(dict(expected), rel=1e-5)
    assert sum(report.losses.values()) == pytest.approx(found, rel=1e-5)
    assert report.losses.keys() == {
        *("contrastive", "spread_out", "soft_labels", "triplet", "embeddings", "similarities"),
        "cosent",
    }
    assert report.soft_label_rows == labelled > 0
    assert report.masked_by_guide > 0
    assert (in_batch > 0) == (class_negatives == "batch")
    for one, weight in zip(gradient, weights, strict=True):
        torch.testing.assert_close(one, weight, rtol=1e-4, atol=1e-5)


def test_one_part_is_scored_by_its_own_objective(pico_encoder: Encoder, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, batches="source")
    step = plan_of(pico_encoder, tmp_path, settings).step(1)
    made = objective_of_sub_batches(
        step.sub_batches, loss=LOSS, sizes=[32], device=torch.device("cpu")
    )
    assert not isinstance(made, SumObjective)


Stop = Callable[[object], None]


class PowerCutError(Exception):
    """Stands for the death of the process right after a step."""


@pytest.mark.parametrize("settings", [MIXED, INTERLEAVED], ids=lambda value: value.batches)
def test_an_interrupted_training_ends_bit_identical(
    pico_folder: Path, tmp_path: Path, settings: TrainSettings
) -> None:
    settings = dataclasses.replace(
        settings, max_steps=8, checkpoint_every_steps=3, micro_batch_tokens=200
    )

    def run(folder: Path, on_step: Stop | None = None) -> bytes:
        log = folder / "training.jsonl"
        train(
            Encoder.load(pico_folder), SOURCES, checkpoint_folder=folder / "checkpoint",
            log_path=log, settings=settings, on_step=on_step,
        )  # fmt: skip
        return log.read_bytes()

    def cut(record: object) -> None:
        if getattr(record, "step", 0) == 5:
            raise PowerCutError

    whole = run(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", cut)
    assert run(tmp_path / "cut") == whole
    records = read_records(tmp_path / "whole" / "training.jsonl")
    assert Counter(record.source for record in records) == {settings.batches: 8}
    assert all(record.pairs == 12 and record.is_grad_cached for record in records)
