"""GradCache gives the gradient of the plain backward pass, to rounding, whatever the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from model.encoder.encoder import Encoder
from model.encoder.tokenization import collate, token_budget_batches
from model.losses.masks import MaskCounts, TextMask
from model.losses.presets import PRESETS
from model.training.data.batches import Batch, BatchPlan
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.team import Team
from model.training.objective import objective
from model.training.objective.objective import objective_of
from model.training.settings import LossSettings, TrainingSource, TrainSettings

SETTINGS = TrainSettings(
    max_steps=1,
    batch_size=7,
    micro_batch_tokens=100,
    max_length_tokens=48,
    learning_rate=1e-3,
    min_learning_rate_share=0.1,
    warmup_steps=0,
    weight_decay=0.0,
    gradient_clip_norm=1.0,
    loss="giga",
    temperature=0.05,
    margin_from_step=1,
    hard_negatives=3,
    matryoshka_dims=(8,),
    source_temperature=1.0,
    precision="fp32",
    log_every_steps=1,
    checkpoint_every_steps=1,
    seed=7,
)


def batch_of(encoder: Encoder, texts: list[str], folder: Path, task: str, negatives: int) -> Batch:
    """Seven rows with repeated texts, so that masks have work, and ragged negatives."""
    counts = [3, 0, 1, 2, 3, 3, 3]
    chosen = [*texts[:5], *texts[:2]]
    table = pa.table(
        {
            "id": [str(row) for row in range(7)],
            "query": [text[:12] for text in chosen],
            "positives": [[text[12:]] for text in chosen],
            "negatives": pa.array(
                [texts[row + 1 : row + 1 + count] for row, count in enumerate(counts)],
                pa.list_(pa.string()),
            ),
            "score": pa.array([row / 7 for row in range(7)], pa.float32()),
        }
    )
    source = TrainingSource("s", task, "Вопрос: ", "", table, 1.0)
    settings = replace(SETTINGS, hard_negatives=negatives)
    return BatchPlan([source], np.zeros(1, dtype=int), settings, encoder, folder).batch(1)


def gradients(
    encoder: Encoder, batch: Batch, *, cached: bool, is_in_batch: bool, loss: str = "giga"
) -> tuple[float, dict[str, Tensor]]:
    made = objective_of(
        batch,
        is_in_batch=is_in_batch,
        loss=LossSettings(loss, 0.05, hardness={"own_negatives": 5.0}, spread_out=0.5),
        sizes=[32, 8],
        device=encoder.device,
    )
    micro_batches = token_budget_batches(
        [len(item.ids) for item in batch.items], 60, is_packed=True
    )
    assert len(micro_batches) > 2, "the premise: the batch takes several micro-batches"
    assert len({len(micro_batch) for micro_batch in micro_batches}) > 1, (
        "the premise: they differ in size"
    )

    def embed(micro_batch: list[int]) -> Tensor:
        items = [batch.items[text] for text in micro_batch]
        return encoder(*collate(items, pad_id=encoder.pad_id, pool_prompt=False, device="cpu"))

    encoder.zero_grad()
    torch.manual_seed(0)
    loss = (cached_backward if cached else plain_backward)(
        embed, micro_batches, len(batch.items), made.loss_and_gradient, Team()
    )
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("task", ["retrieval", "classification", "sts"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_gradient_is_the_plain_one(
    pico_encoder: Encoder,
    pico_texts: list[str],
    tmp_path: Path,
    negatives: int,
    task: str,
    dropout: float,
) -> None:
    """With Matryoshka sizes, masks, ragged negatives, unequal micro-batches, and dropout."""
    if dropout:
        pico_encoder.backbone.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: torch.nn.functional.dropout(output, dropout)
        )
    batch = batch_of(pico_encoder, pico_texts, tmp_path, task, negatives)
    if task == "retrieval":
        counts = MaskCounts()
        TextMask(batch.texts).allowed(["other_positives"], slice(0, 7), counts)
        assert counts.masked_share > 0, "the premise: something is masked"
    in_batch = task == "retrieval"
    plain_loss, plain = gradients(pico_encoder, batch, cached=False, is_in_batch=in_batch)
    cached_loss, cached = gradients(pico_encoder, batch, cached=True, is_in_batch=in_batch)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-6, abs=1e-7)
    assert plain.keys() == cached.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("loss", PRESETS)
@pytest.mark.parametrize("rows_at_once", [2, 1024])
def test_cached_gradient_is_the_plain_one_for_every_loss(
    pico_encoder: Encoder,
    pico_texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    rows_at_once: int,
) -> None:
    """Scored whole and in slices of two rows."""
    batch = batch_of(pico_encoder, pico_texts, tmp_path, "retrieval", 3)
    plain_loss, plain = gradients(pico_encoder, batch, cached=False, is_in_batch=True, loss=loss)
    at_once = rows_at_once * len(batch.items)
    monkeypatch.setattr(objective, "NUMBERS_AT_ONCE", at_once)
    cached_loss, cached = gradients(pico_encoder, batch, cached=True, is_in_batch=True, loss=loss)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-5, abs=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_are_added_to_those_that_are_there(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    batch = batch_of(pico_encoder, pico_texts, tmp_path, "retrieval", 3)
    _, once = gradients(pico_encoder, batch, cached=True, is_in_batch=True)
    made = objective_of(
        batch,
        is_in_batch=True,
        loss=LossSettings("giga", 0.05, hardness={"own_negatives": 5.0}, spread_out=0.5),
        sizes=[32, 8],
        device=pico_encoder.device,
    )
    micro_batches = token_budget_batches(
        [len(item.ids) for item in batch.items], 60, is_packed=True
    )

    def embed(micro_batch: list[int]) -> Tensor:
        items = [batch.items[text] for text in micro_batch]
        return pico_encoder(*collate(items, pad_id=0, pool_prompt=False, device="cpu"))

    plain_backward(embed, micro_batches, len(batch.items), made.loss_and_gradient, Team())
    for name, parameter in pico_encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=1e-4, atol=1e-5)
