"""A decoder from nothing: tokenizer, packing, training and its resumption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from model.backbone import scratch
from model.backbone.scratch import (
    DecoderSize,
    LanguageModel,
    LanguageTraining,
    new_decoder,
    pack_documents,
    train_decoder,
    train_tokenizer,
)
from model.encoder.precision import Precision

SIZE = DecoderSize(
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SETTINGS = LanguageTraining(
    max_steps=8,
    batch_tokens=64,
    sequence_tokens=16,
    learning_rate=1e-2,
    warmup_steps=2,
    weight_decay=0.01,
    precision="bf16",
    seed=3,
)


@pytest.fixture(scope="module")
def sequences(pico_texts: list[str]) -> np.ndarray:
    return pack_documents(train_tokenizer(pico_texts, 300), pico_texts, 16, max_tokens=10_000)


def _trained(sequences: np.ndarray, folder: Path) -> tuple[dict[str, torch.Tensor], list]:
    decoder, curve = train_decoder(
        new_decoder(SIZE, 300, seed=5),
        sequences,
        SETTINGS,
        checkpoint_folder=folder,
        checkpoint_interval_s=0.0,
    )
    return decoder.state_dict(), curve


def test_the_tokenizer_is_the_same_each_time_and_loses_nothing(pico_texts: list[str]) -> None:
    first, second = (train_tokenizer(pico_texts, 320) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == 320
    for text in [*pico_texts, "emoji 🫖, 中文, tab\t and\nline"]:
        assert first.decode(first.encode(text)) == text


def test_both_unicode_forms_of_a_text_get_the_same_tokens(pico_texts: list[str]) -> None:
    tokenizer = train_tokenizer(pico_texts, 300)
    assert tokenizer.encode("и\u0306од") == tokenizer.encode("йод")


def test_packing_lays_documents_end_to_end(pico_texts: list[str]) -> None:
    tokenizer = train_tokenizer(pico_texts, 300)
    packed = pack_documents(tokenizer, pico_texts, 16, max_tokens=10_000)
    expected = [token for text in pico_texts for token in [*tokenizer.encode(text), 1]]
    assert tokenizer.convert_ids_to_tokens(1) == scratch.EOS
    assert packed.shape[1] == 16
    assert 0 <= len(expected) - packed.size < 16
    assert packed.flatten().tolist() == expected[: packed.size]


def test_packing_reads_no_more_documents_than_it_needs(
    pico_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "DOCUMENTS_PER_CALL", 2)
    tokenizer = train_tokenizer(pico_texts, 300)
    whole = pack_documents(tokenizer, pico_texts, 4, max_tokens=10_000)
    part = pack_documents(tokenizer, pico_texts, 4, max_tokens=20)
    assert 20 - 4 < part.size < whole.size
    assert (part == whole[: len(part)]).all()


def test_documents_too_short_for_one_sequence_are_an_error(pico_texts: list[str]) -> None:
    tokenizer = train_tokenizer(pico_texts, 300)
    with pytest.raises(ValueError, match="one sequence needs 128: give more documents"):
        pack_documents(tokenizer, ["Да."], 128, max_tokens=10_000)
    with pytest.raises(ValueError, match="hold 0 tokens"):
        pack_documents(tokenizer, [], 128, max_tokens=10_000)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-3)])
def test_the_loss_is_that_of_transformers(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, tolerance: float
) -> None:
    # does not divide the 3 * 15 predicted tokens
    monkeypatch.setitem(scratch.LOSS_CHUNKS, "cpu", 7)
    decoder = new_decoder(SIZE, 300, seed=5)
    ids_BT = torch.randint(0, 300, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = decoder(input_ids=ids_BT, labels=ids_BT).loss
    model = LanguageModel(decoder.model, None)
    ours = scratch._loss(model, ids_BT, ids_BT, None, precision)
    assert ours.item() == pytest.approx(expected.item(), rel=tolerance)


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (new_decoder(SIZE, 300, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.model.embed_tokens.weight, second.model.embed_tokens.weight)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_training_lowers_the_loss_and_follows_the_schedule(
    sequences: np.ndarray, tmp_path: Path
) -> None:
    _, curve = _trained(sequences, tmp_path)
    assert [point.step for point in curve] == list(range(1, 9))
    assert curve[-1].loss < curve[0].loss - 0.5
    assert curve[0].loss == pytest.approx(np.log(300), abs=0.3)
    rates = [point.learning_rate for point in curve]
    assert rates[:2] == [5e-3, 1e-2]
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("death", [1, 5])
def test_a_killed_run_ends_with_the_same_bits(
    sequences: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    expected, expected_curve = _trained(sequences, tmp_path / "unbroken")
    take_step = scratch._Run.take_step

    def die_at(run: scratch._Run, step: int) -> None:
        if step == death + 1:
            raise KeyboardInterrupt
        take_step(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(scratch._Run, "take_step", die_at)
        with pytest.raises(KeyboardInterrupt):
            _trained(sequences, tmp_path / "killed")

    steps: list[int] = []

    def count(run: scratch._Run, step: int) -> None:
        steps.append(step)
        take_step(run, step)

    monkeypatch.setattr(scratch._Run, "take_step", count)
    resumed, curve = _trained(sequences, tmp_path / "killed")
    assert steps[0] == death + 1
    assert curve == expected_curve
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_every_sequence_is_seen_once_per_pass(sequences: np.ndarray) -> None:
    run = scratch._Run(
        LanguageModel(_tiny().model, None),
        np.arange(10, dtype=np.int32).reshape(10, 1),
        SETTINGS_ONE,
    )
    seen = torch.cat([run._batch(step) for step in range(1, 11)]).flatten().tolist()
    assert len(seen) == 30
    for start in (0, 10, 20):
        assert sorted(seen[start : start + 10]) == list(range(10))


SETTINGS_ONE = LanguageTraining(
    max_steps=8,
    batch_tokens=3,
    sequence_tokens=1,
    learning_rate=1e-2,
    warmup_steps=0,
    weight_decay=0.0,
    precision="fp32",
    seed=3,
)


def _tiny() -> Qwen3ForCausalLM:
    return new_decoder(SIZE, 300, seed=5)
