"""The line of the log that tells how a training goes, and the utilisation in it."""

import logging

import pytest
import torch

from model.encoder import pace
from model.encoder.encoder import Encoder
from model.training.devices import utilisation
from model.training.objective.loss_report import LossReport
from model.training.progress import Progress
from model.training.step_log import StepRecord


def record(step: int, *, pairs: int, tokens: int) -> StepRecord:
    values = dict.fromkeys(StepRecord.__dataclass_fields__, 0.0)
    values |= {"step": step, "source": "titles", "loss": 1.5, "pairs": pairs, "tokens": tokens}
    values |= {"report": LossReport(in_batch_negatives=60.0, hard_negatives=3.0)}
    return StepRecord(**values)


def test_rates_count_from_the_start_and_lines_keep_their_distance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([100.0, 102.0, 104.0, 110.0])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO):
        shown = Progress(4, most_tokens_per_s=4000.0)
        for step in (1, 2, 3):
            shown.show(record(step, pairs=10, tokens=2000))
    assert caplog.messages == [
        "step 1/4 loss 1.500 nats (titles), 5 pairs/s, 1000 tokens/s, utilisation 25.0 %, "
        "63 negatives per query, 6 s left",
        "step 3/4 loss 1.500 nats (titles), 3 pairs/s, 600 tokens/s, utilisation 15.0 %, "
        "63 negatives per query, 3 s left",
    ]


def test_arithmetic_alone_is_six_operations_per_weight_of_the_blocks(
    pico_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utilisation, "_seconds_of_product", lambda _: 0.5)
    config = pico_encoder.backbone.config
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    attention = 2 * (heads + key_heads) * config.head_dim * config.hidden_size
    wide = 3 * config.hidden_size * config.intermediate_size
    weights = config.num_hidden_layers * (attention + wide)
    expected = 2 * 512**3 / 0.5 / (6 * weights)
    assert utilisation.most_tokens_per_s(pico_encoder, "fp32") == pytest.approx(expected)


def test_a_product_takes_time() -> None:
    assert 0 < utilisation._seconds_of_product(torch.ones(64, 64)) < 10
