"""The trainer: exact gradients in bounded memory, exact resume, and a loss that falls."""

import dataclasses
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from model.checkpoint import load_latest
from model.encoder.encoder import Encoder, TokenizedText
from model.training.devices import micro_batches
from model.training.schedule import learning_rate_at
from model.training.settings import LoraSettings, MemorySettings, TrainingSource, TrainSettings
from model.training.step_log import StepRecord, read_records, summarise, write_curves
from model.training.stopping import TrainingStoppedError
from model.training.trainer import NonFiniteLossError, train
from tests.fork_server import Forked, start

SETTINGS = TrainSettings(
    max_steps=8,
    batch_size=6,
    micro_batch_tokens=4096,
    max_length_tokens=48,
    learning_rate=5e-3,
    min_learning_rate_share=0.1,
    warmup_steps=2,
    weight_decay=0.01,
    gradient_clip_norm=1.0,
    loss="giga",
    temperature=0.05,
    margin_from_step=1,
    hard_negatives=2,
    matryoshka_dims=(16, 8),
    source_temperature=0.5,
    precision="fp32",
    log_every_steps=3,
    checkpoint_every_steps=3,
    seed=7,
)


def table_of(texts: list[str], negatives_per_row: list[int], *, graded: bool = False) -> pa.Table:
    """Row i asks the first half of text i; the second half answers."""
    rows = range(len(negatives_per_row))
    chosen = [texts[row % len(texts)] + f" {row}" for row in rows]
    return pa.table(
        {
            "id": [f"row-{row}" for row in rows],
            "query": [text[: len(text) // 2] for text in chosen],
            "positives": [[text[len(text) // 2 :]] for text in chosen],
            "negatives": pa.array(
                [
                    [f"{texts[(row + k + 1) % len(texts)]} нет" for k in range(count)]
                    for row, count in zip(rows, negatives_per_row, strict=True)
                ],
                pa.list_(pa.string()),
            ),
            "score": pa.array([row / len(rows) if graded else None for row in rows], pa.float32()),
        }
    )


def source_of(
    texts: list[str], negatives_per_row: list[int], *, name: str = "pairs", task: str = "retrieval"
) -> TrainingSource:
    table = table_of(texts, negatives_per_row, graded=task == "sts")
    return TrainingSource(name, task, "Вопрос: ", "", table, 1.0)


@pytest.fixture
def sources(pico_texts: list[str]) -> list[TrainingSource]:
    return [
        source_of(pico_texts, [0, 1, 2, 3] * 5),
        source_of(pico_texts, [0] * 9, name="grades", task="sts"),
        source_of(pico_texts, [3] * 12, name="classes", task="classification"),
    ]


def weights_of(encoder: Encoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_same_steps(
    model: Path, texts: list[str], folder: Path, one: TrainSettings, other: TrainSettings
) -> None:
    """Two trainings of the model that differ in rounding alone."""
    results = []
    for number, settings in enumerate((one, other)):
        encoder, work = Encoder.load(model), folder / str(number)
        train(
            encoder,
            [source_of(texts, [0, 1, 2, 3] * 5)],
            checkpoint_folder=work / "checkpoint",
            log_path=work / "training.jsonl",
            settings=settings,
        )
        losses = [record.loss for record in read_records(work / "training.jsonl")]
        results.append((losses, weights_of(encoder)))
    (losses, weights), (other_losses, other_weights) = results
    assert other_losses == pytest.approx(losses, rel=1e-5)
    assert other_weights.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_batch_over_the_token_budget_is_grad_cached_and_trains_the_same(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    losses = []
    for tokens in (150, 4096):
        settings = dataclasses.replace(SETTINGS, micro_batch_tokens=tokens)
        folder = tmp_path / str(tokens)
        run(Encoder.load(pico_folder), sources, folder, settings)
        records = read_records(folder / "training.jsonl")
        assert {record.is_grad_cached for record in records} == {tokens == 150}
        losses.append([record.loss for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def with_memory_for(encoder: Encoder, tokens: int, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """The encoder on a device that holds no larger micro-batch."""
    embed = encoder.embed

    def embed_if_it_fits(items: list[TokenizedText]) -> Tensor:
        if sum(len(item.ids) for item in items) > tokens:
            raise torch.OutOfMemoryError("simulated")
        return embed(items)

    monkeypatch.setattr(encoder, "embed", embed_if_it_fits)
    return encoder


def test_a_step_that_does_not_fit_is_taken_again_in_halves(
    pico_folder: Path,
    sources: list[TrainingSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(micro_batches, "FEWEST_TOKENS", 50)
    settings = dataclasses.replace(SETTINGS, micro_batch_tokens=800)
    run(Encoder.load(pico_folder), sources, tmp_path / "roomy", settings)
    small = with_memory_for(Encoder.load(pico_folder), 210, monkeypatch)
    with caplog.at_level(logging.WARNING):
        run(small, sources, tmp_path / "small", settings)
    assert "going on with micro-batches of 200 tokens" in caplog.messages[-1]
    assert len(caplog.messages) == 2
    roomy, halved = (
        [record.loss for record in read_records(tmp_path / name / "training.jsonl")]
        for name in ("roomy", "small")
    )
    assert halved == pytest.approx(roomy, rel=2e-3)


def test_the_halved_size_outlives_an_interruption(
    pico_folder: Path,
    sources: list[TrainingSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(micro_batches, "FEWEST_TOKENS", 50)
    settings = dataclasses.replace(SETTINGS, micro_batch_tokens=800)

    def stop_at_five(record: StepRecord) -> None:
        if record.step == 5:
            raise InterruptedError

    small = with_memory_for(Encoder.load(pico_folder), 210, monkeypatch)
    with pytest.raises(InterruptedError):
        run(small, sources, tmp_path, settings, on_step=stop_at_five)
    caplog.clear()
    run(with_memory_for(Encoder.load(pico_folder), 210, monkeypatch), sources, tmp_path, settings)
    assert not [message for message in caplog.messages if "out of memory" in message]


def test_a_step_that_fits_in_no_size_fails(
    pico_folder: Path,
    sources: list[TrainingSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(with_memory_for(Encoder.load(pico_folder), 5, monkeypatch), sources, tmp_path)


def run(
    encoder: Encoder,
    sources: list[TrainingSource],
    folder: Path,
    settings: TrainSettings = SETTINGS,
    **options: Any,
) -> dict[str, Any]:
    return train(
        encoder,
        sources,
        checkpoint_folder=folder / "checkpoint",
        log_path=folder / "training.jsonl",
        settings=settings,
        **options,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path, precision: str
) -> None:
    settings = dataclasses.replace(SETTINGS, max_steps=30, precision=precision)
    metrics = run(pico_encoder, [source_of(pico_texts, [0] * 12)], tmp_path, settings)
    assert metrics["last_loss"] < 0.6 * metrics["first_loss"]
    assert all(p.dtype == torch.float32 for p in pico_encoder.parameters())


def test_every_step_logs_what_its_loss_was_made_of(
    pico_encoder: Encoder, sources: list[TrainingSource], tmp_path: Path
) -> None:
    run(pico_encoder, sources, tmp_path)
    records = read_records(tmp_path / "training.jsonl")
    assert [record.step for record in records] == list(range(1, 9))
    by_source = {record.source: record for record in records}
    assert set(by_source) == {"pairs", "grades", "classes"}
    assert by_source["pairs"].report.in_batch_negatives >= 5.0
    assert by_source["classes"].report.in_batch_negatives == 0.0
    assert by_source["classes"].report.hard_negatives == 2.0
    assert (
        by_source["grades"].report.in_batch_negatives + by_source["grades"].report.hard_negatives
        == 0.0
    )


def test_metrics_curves_and_log_hold_no_time_and_agree(
    pico_encoder: Encoder, sources: list[TrainingSource], tmp_path: Path
) -> None:
    metrics = run(pico_encoder, sources, tmp_path)
    records = read_records(tmp_path / "training.jsonl")
    assert metrics == summarise(records)
    assert metrics["steps"] == 8
    assert metrics["pairs_seen"] == 8 * 6
    assert metrics["first_loss"] == records[0].loss
    write_curves(records, tmp_path / "curves.csv", every_steps=3)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0].startswith("step,loss,learning_rate")
    assert [line.split(",")[0] for line in lines[1:]] == ["3", "6", "8"]
    mean = sum(record.loss for record in records[6:]) / 2
    assert float(lines[3].split(",")[1]) == pytest.approx(mean, rel=1e-5)


def test_two_trainings_of_one_seed_write_equal_bytes(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    results = []
    for name in ("one", "other"):
        encoder = Encoder.load(pico_folder)
        run(encoder, sources, tmp_path / name)
        results.append(((tmp_path / name / "training.jsonl").read_bytes(), weights_of(encoder)))
    assert results[0][0] == results[1][0]
    assert_same_weights(results[0][1], results[1][1])


def test_gradients_are_clipped_before_the_step_and_logged_unclipped(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    norms: list[float] = []

    def measure(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(g for g in gradients if g is not None).item())

    handle = register_optimizer_step_pre_hook(measure)
    try:
        for clip_norm in (1e-3, 1e9):
            settings = dataclasses.replace(
                SETTINGS, max_steps=1, warmup_steps=0, gradient_clip_norm=clip_norm
            )
            run(Encoder.load(pico_folder), sources, tmp_path / str(clip_norm), settings)
    finally:
        handle.remove()
    clipped, unclipped = norms
    assert clipped == pytest.approx(1e-3, rel=1e-6)
    for clip_norm in (1e-3, 1e9):
        [record] = read_records(tmp_path / str(clip_norm) / "training.jsonl")
        assert record.grad_norm == pytest.approx(unclipped, rel=1e-6)
    assert unclipped > 0.1


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float)])
def test_products_of_the_decoder_have_the_precision_of_the_settings(
    pico_encoder: Encoder,
    sources: list[TrainingSource],
    tmp_path: Path,
    precision: str,
    dtype: torch.dtype,
) -> None:
    """Both the plain pass and the two passes of GradCache."""
    seen: set[torch.dtype] = set()
    layer = next(each for each in pico_encoder.modules() if isinstance(each, torch.nn.Linear))
    layer.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    for tokens in (4096, 150):
        settings = dataclasses.replace(
            SETTINGS, max_steps=3, precision=precision, micro_batch_tokens=tokens
        )
        run(pico_encoder, sources, tmp_path / str(tokens), settings)
        assert seen == {dtype}
        seen.clear()


def test_norms_are_not_decayed(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    """With all rows masked the gradient is zero: only weight decay moves weights."""
    settings = dataclasses.replace(SETTINGS, weight_decay=0.5, hard_negatives=0)
    before = weights_of(pico_encoder)
    run(pico_encoder, [source_of(pico_texts, [0] * 9, task="classification")], tmp_path, settings)
    after = pico_encoder.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (tensor.ndim < 2), name


def test_matryoshka_above_the_embedding_size_is_refused_before_training(
    pico_encoder: Encoder, sources: list[TrainingSource], tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, matryoshka_dims=(64,))
    with pytest.raises(ValueError, match="64 exceeds the embedding size 32"):
        run(pico_encoder, sources, tmp_path, settings)


def test_no_sources_are_refused(pico_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sources"):
        run(pico_encoder, [], tmp_path)


# ---- interruptions


class PowerCutError(Exception):
    """Stands for the death of the process right after a step."""


@pytest.mark.parametrize("cut_after", [1, 3, 4, 8])
def test_an_interrupted_training_ends_bit_identical(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path, cut_after: int
) -> None:
    """Cut before, just before and after a checkpoint, and just before the last one."""
    whole = Encoder.load(pico_folder)
    metrics = run(whole, sources, tmp_path / "whole")

    def cut(record: StepRecord) -> None:
        if record.step == cut_after:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(Encoder.load(pico_folder), sources, tmp_path / "cut", on_step=cut)
    resumed = Encoder.load(pico_folder)
    seen: list[int] = []
    again = run(resumed, sources, tmp_path / "cut", on_step=lambda record: seen.append(record.step))
    assert seen == list(range((cut_after - 1) // 3 * 3 + 1, 9))
    assert again == metrics
    logs = [(tmp_path / name / "training.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert_same_weights(weights_of(resumed), weights_of(whole))


def test_sigterm_saves_the_step_and_the_rerun_goes_on_from_it(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    whole = Encoder.load(pico_folder)
    run(whole, sources, tmp_path / "whole")
    earlier = signal.getsignal(signal.SIGTERM)

    def terminate(record: StepRecord) -> None:
        if record.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError, match="after step 4"):
        run(Encoder.load(pico_folder), sources, tmp_path / "cut", on_step=terminate)
    assert signal.getsignal(signal.SIGTERM) is earlier
    seen: list[int] = []
    resumed = Encoder.load(pico_folder)
    run(resumed, sources, tmp_path / "cut", on_step=lambda record: seen.append(record.step))
    assert seen == [5, 6, 7, 8]
    assert_same_weights(weights_of(resumed), weights_of(whole))


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_stop_leaves_no_thread_that_makes_batches(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    seen: list[list[str]] = []

    def terminate(record: StepRecord) -> None:
        seen.append(batch_threads())
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        run(Encoder.load(pico_folder), sources, tmp_path, on_step=terminate)
    assert len(seen[0]) == 1, "the premise: there was one"
    assert not batch_threads()


def test_a_batch_that_cannot_be_made_stops_the_training_with_its_message(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    """Row 3 has no query, which is found by the thread."""
    source = source_of(pico_texts, [0] * 6)
    queries = pa.array([None if row == 3 else f"вопрос {row}" for row in range(6)])
    broken = dataclasses.replace(source, table=source.table.set_column(1, "query", queries))
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'casefold'"):
        run(pico_encoder, [broken], tmp_path)
    assert not batch_threads()


def kill_after(lines: int, log: Path, process: Forked) -> None:
    """SIGKILL the process once its log holds this many lines."""
    deadline, tick = time.monotonic() + 200, threading.Event()
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            process.kill()
            break
        tick.wait(0.005)
    assert process.wait(60) == -signal.SIGKILL


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora-memory": {
        "lora": LoraSettings(rank=2, alpha=4, dropout=0.1, target_modules=("q_proj", "up_proj")),
        "memory": MemorySettings(batches=4, from_step=3),
    },
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.slow
def test_a_killed_process_is_continued_to_the_same_bytes(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path, options: str
) -> None:
    """SIGKILL, which no handler sees, at a step that is no checkpoint; the rest by another one."""
    table = table_of(pico_texts, [0, 1, 2, 3] * 5)
    pq.write_table(table, tmp_path / "table.parquet")
    settings = dataclasses.replace(
        SETTINGS, max_steps=60, checkpoint_every_steps=7, micro_batch_tokens=300, precision="bf16",
        **OPTIONS[options],
    )  # fmt: skip
    arguments = [str(pico_folder), str(tmp_path / "cut"), json.dumps(dataclasses.asdict(settings))]
    log = tmp_path / "cut" / "training.jsonl"
    kill_after(
        16,
        log,
        start("tests.unit.trainer_worker", arguments, cwd=tmp_path, environment={**os.environ}),
    )
    checkpoint = load_latest(tmp_path / "cut" / "checkpoint" / "steps")
    assert checkpoint is not None
    assert 7 <= checkpoint.step < 60
    source = TrainingSource("pairs", "retrieval", "Q: ", "", table, 1.0)
    whole, resumed = Encoder.load(pico_folder), Encoder.load(pico_folder)
    run(whole, [source], tmp_path / "whole", settings)
    run(resumed, [source], tmp_path / "cut", settings)
    assert log.read_bytes() == (tmp_path / "whole" / "training.jsonl").read_bytes()
    assert_same_weights(weights_of(resumed), weights_of(whole))


def test_two_checkpoints_are_kept(
    pico_encoder: Encoder, sources: list[TrainingSource], tmp_path: Path
) -> None:
    run(pico_encoder, sources, tmp_path, dataclasses.replace(SETTINGS, checkpoint_every_steps=1))
    assert len(list((tmp_path / "checkpoint" / "steps").iterdir())) == 2


def test_a_checkpoint_of_other_settings_is_refused(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    run(Encoder.load(pico_folder), sources, tmp_path)
    other = dataclasses.replace(SETTINGS, learning_rate=1e-3)
    with pytest.raises(ValueError, match="other settings or sources: delete the folder"):
        run(Encoder.load(pico_folder), sources, tmp_path, other)


def test_a_log_shorter_than_its_checkpoint_is_refused(
    pico_folder: Path, sources: list[TrainingSource], tmp_path: Path
) -> None:
    run(Encoder.load(pico_folder), sources, tmp_path)
    (tmp_path / "training.jsonl").write_text("")
    with pytest.raises(ValueError, match="the log was changed"):
        run(Encoder.load(pico_folder), sources, tmp_path)


def test_a_loss_that_is_no_number_stops_with_step_source_and_rows(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    with torch.no_grad():
        next(pico_encoder.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 1: loss nan.*'pairs'.*row-\d+"):
        run(pico_encoder, [source_of(pico_texts, [0] * 9)], tmp_path)
    report = json.loads((tmp_path / "checkpoint" / "diverged.json").read_text())
    assert report["step"] == 1
    assert report["source"] == "pairs"
    assert len(report["ids"]) == 6


# ---- learning rate


def test_learning_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    def rate(step: int) -> float:
        return learning_rate_at(step, peak=2.0, min_share=0.1, warmup_steps=4, max_steps=24)

    assert [rate(step) for step in (1, 2, 4)] == [0.5, 1.0, 2.0]
    assert rate(14) == pytest.approx((2.0 + 0.2) / 2)
    assert rate(24) == pytest.approx(0.2)


def test_learning_rate_without_warm_up_starts_below_the_peak() -> None:
    rate = learning_rate_at(1, peak=1.0, min_share=0.0, warmup_steps=0, max_steps=2)
    assert rate == pytest.approx(0.5)
