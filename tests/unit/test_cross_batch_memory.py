"""Cross-batch memory: the loss written out, what is remembered for whom, and exact resume."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.encoder.encoder import Encoder
from model.losses.masks import BatchTexts, text_hashes
from model.training.data.batches import Batch, PlainText
from model.training.devices.team import Team
from model.training.objective.cross_batch_memory import DocumentMemory
from model.training.objective.objective import ContrastiveObjective, objective_of
from model.training.settings import LossSettings, MemorySettings
from model.training.step_log import read_records
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS, source_of, weights_of

SIZES = [8, 4]
TEMPERATURE = 0.1


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 8, generator=generator), dim=-1)


def batch_of(queries: list[str], documents: list[str], known: dict[str, list[str]]) -> Batch:
    """Documents after the positives are hard negatives of row 0."""
    pairs = [(query, text) for query in queries for text in known.get(query, [])]
    rows = len(queries)
    return Batch(
        row_ids=queries,
        items=[],
        texts=BatchTexts(
            queries=text_hashes(queries),
            documents=text_hashes(documents),
            owners=np.array([*range(rows), *[0] * (len(documents) - rows)]),
            known_queries=text_hashes([query for query, _ in pairs]),
            known_positives=text_hashes([text for _, text in pairs]),
        ),
        scores=None,
        is_in_batch=True,
        teacher_scores=np.full(len(documents), np.nan, dtype=np.float32),
        plain_texts=[PlainText("", text, is_query=False) for text in queries + documents],
    )


EARLIER = batch_of(["q1", "x"], ["другой ответ q1", "x+", "q3+"], {"q1": ["другой ответ q1"]})
NEWER = batch_of(["y", "z"], ["y+", "z+"], {"y": ["y+"], "z": ["z+"]})
NOW = batch_of(
    ["q1", "q2", "q3"],
    ["q1+", "q2+", "z+", "мимо"],
    {"q1": ["q1+"], "q2": ["q2+", "y+"], "q3": ["z+", "q3+"]},
)
"""Row 0 knows its other answer from the earlier batch alone, row 1 the newer positive y+, row 2 the
earlier hard negative q3+; z+ is in this batch and remembered, so it counts once."""
REMEMBERED = ["y+", "z+", "другой ответ q1", "x+", "q3+"]
ALLOWED = {0: {"y+", "x+", "q3+"}, 1: {"x+", "q3+", "другой ответ q1"}, 2: {"y+", "x+"}}
ALLOWED[2].add("другой ответ q1")


def recalled() -> Batch:
    memory = DocumentMemory(MemorySettings(batches=2, from_step=1))
    memory.add("s", EARLIER, unit(3, 1))
    memory.add("s", NEWER, unit(2, 2))
    return memory.recall(5, "s", NOW)


def objective(batch: Batch, loss: str) -> ContrastiveObjective:
    settings = LossSettings(loss, TEMPERATURE, use_student_margin=False)
    device = torch.device("cpu")
    made = objective_of(batch, is_in_batch=True, loss=settings, sizes=SIZES, device=device)
    assert isinstance(made, ContrastiveObjective)
    return made


def written_out(embedding_MD: Tensor, *, with_hard: bool) -> float:
    """The loss of NOW in float64, one candidate at a time."""
    memory = torch.cat([unit(2, 2), unit(3, 1)]).double()
    losses = []
    for size in SIZES:
        query, document = F.normalize(embedding_MD.double()[:, :size], dim=-1).split([3, 4])
        kept = F.normalize(memory[:, :size], dim=-1)
        for row in range(3):
            logits = [query[row] @ document[other] / TEMPERATURE for other in range(3)]
            if with_hard:
                logits.append(query[row] @ document[3] / TEMPERATURE)
            logits += [
                query[row] @ kept[place] / TEMPERATURE
                for place, text in enumerate(REMEMBERED)
                if text in ALLOWED[row]
            ]
            total = sum(math.exp(logit) for logit in logits)
            losses.append(math.log(total) - logits[row].item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("loss", "with_hard"), [("giga", True), ("f2llm", None)])
def test_the_loss_is_the_one_written_out(loss: str, with_hard: bool | None) -> None:
    """f2llm has the batch in a softmax of its own, without hard negatives of other rows."""
    embedding_MD = unit(7, 3)
    made = objective(recalled(), loss)
    total, gradient_MD = made.loss_and_gradient(embedding_MD, Team())
    if with_hard is not None:
        expected = written_out(embedding_MD, with_hard=with_hard)
    else:
        without = objective(dataclasses.replace(recalled(), memory_QD=None), "nv-embed-2")
        own, _ = without.loss_and_gradient(embedding_MD, Team())
        expected = written_out(embedding_MD, with_hard=False) + own.item()
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert made.report(Team()).memory_negatives == pytest.approx((3 + 3 + 3) / 3)
    assert gradient_MD.abs().sum() > 0


def test_in_batch_negatives_are_counted_without_the_memory() -> None:
    reports = []
    for made in (objective(recalled(), "giga"), objective(NOW, "giga")):
        made.loss_and_gradient(unit(7, 3), Team())
        reports.append(made.report(Team()))
    with_memory, without = reports
    assert with_memory.in_batch_negatives == without.in_batch_negatives > 0
    assert with_memory.hard_negatives == without.hard_negatives
    assert without.memory_negatives == 0


def test_only_the_newest_batches_of_the_same_source_are_recalled() -> None:
    memory = DocumentMemory(MemorySettings(batches=2, from_step=3))
    for number, name in enumerate(["s", "s", "other", "s"]):
        memory.add(name, NEWER, torch.full((2, 8), float(number)))
    found = memory.recall(3, "s", NOW)
    assert found.memory_QD is not None
    assert found.memory_QD[:, 0].tolist() == [3.0, 3.0]
    assert memory.recall(2, "s", NOW) is NOW, "too early"
    assert memory.recall(3, "new", NOW) is NOW, "nothing of this source"


def test_classes_are_neither_remembered_nor_given_any() -> None:
    memory = DocumentMemory(MemorySettings(batches=2, from_step=1))
    memory.add("s", dataclasses.replace(NEWER, is_in_batch=False), unit(2, 2))
    assert memory.sources() == []
    memory.add("s", NEWER, unit(2, 2))
    of_classes = dataclasses.replace(NOW, is_in_batch=False)
    assert memory.recall(5, "s", of_classes) is of_classes


def test_without_settings_nothing_is_remembered() -> None:
    memory = DocumentMemory(None)
    memory.add("s", NEWER, unit(2, 2))
    assert memory.recall(5, "s", NOW) is NOW
    assert memory.tensors() == {}


def run(encoder: Encoder, texts: list[str], folder: Path, **options) -> None:
    settings = dataclasses.replace(
        SETTINGS, memory=MemorySettings(batches=3, from_step=3), micro_batch_tokens=300
    )
    others = source_of(texts, [0] * 9, name="grades", task="sts")
    train(
        encoder,
        [source_of(texts, [0, 1, 2, 3] * 5), others],
        checkpoint_folder=folder / "checkpoint",
        log_path=folder / "training.jsonl",
        settings=settings,
        **options,
    )


def test_an_interrupted_training_with_a_memory_ends_bit_identical(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """The queue lies in the checkpoint: what was remembered before the cut is met after it."""
    whole, resumed = Encoder.load(pico_folder), Encoder.load(pico_folder)
    run(whole, pico_texts, tmp_path / "whole")

    def cut(record) -> None:
        if record.step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(Encoder.load(pico_folder), pico_texts, tmp_path / "cut", on_step=cut)
    run(resumed, pico_texts, tmp_path / "cut")
    logs = [tmp_path / name / "training.jsonl" for name in ("whole", "cut")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    records = read_records(logs[0])
    assert [r.report.memory_negatives for r in records[:2]] == [0.0, 0.0]
    assert any(r.report.memory_negatives > 3 for r in records[2:])
    assert all(r.report.memory_negatives == 0 for r in records if r.source == "grades")
