"""A decoder from elsewhere goes on with its language modelling: what is hidden, learnt and kept."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tasks.backbone
from model.backbone import scratch
from model.backbone.adapt import Adaptation, adapt, mask_token_of, read_head
from model.backbone.scratch import (
    LanguageModel,
    LanguageTraining,
    Masking,
    _posed,
    pack_documents,
)
from model.encoder.attention import is_causal
from model.encoder.encoder import Encoder
from tasks.contract.stage import StageError
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS, CHECKPOINTS
from tests.unit import test_task_backbone
from tests.unit.test_task_backbone import ADDED, LOADED, contents, with_backbone

params = test_task_backbone.params
own_torch_settings = test_task_backbone.own_torch_settings

SETTINGS = LanguageTraining(
    max_steps=12,
    batch_tokens=64,
    sequence_tokens=16,
    learning_rate=1e-2,
    warmup_steps=2,
    weight_decay=0.01,
    precision="fp32",
    seed=3,
)
MASKED = dataclasses.replace(SETTINGS, masking=Masking(0.3, 5))
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.1,
}  # fmt: skip


def qwen(tokens: int, *, is_tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, vocab_size=tokens, tie_word_embeddings=is_tied))


def gemma(tokens: int, *, is_tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, vocab_size=tokens, tie_word_embeddings=is_tied)
    )


def language_model(
    tokens: int, *, is_tied: bool, build: Callable[..., Any] = qwen
) -> LanguageModel:
    whole = build(tokens, is_tied=is_tied)
    return LanguageModel(whole.model, None if is_tied else whole.lm_head.weight.detach())


@pytest.fixture(scope="module")
def sequences(pico_tokenizer: PreTrainedTokenizerFast, pico_texts: list[str]) -> np.ndarray:
    return pack_documents(pico_tokenizer, pico_texts, 16, max_tokens=10_000)


def adapted(
    model: LanguageModel, sequences: np.ndarray, settings: LanguageTraining, folder: Path
) -> Adaptation:
    return adapt(
        model, sequences, sequences[:6], settings, checkpoints=folder, checkpoint_interval_s=0.0
    )


@given(
    ids=st.integers(1, 4).flatmap(
        lambda rows: st.integers(2, 30).flatmap(
            lambda length: st.lists(
                st.lists(st.integers(0, 9), min_size=length, max_size=length),
                min_size=rows,
                max_size=rows,
            )
        )
    ),
    share=st.floats(0.01, 0.99),
    step=st.integers(1, 100),
    other=st.integers(0, 9),
)
def test_what_is_predicted_is_never_read(
    ids: list[list[int]], share: float, step: int, other: int
) -> None:
    ids_BT = torch.tensor(ids)
    masking = Masking(share, 77)
    inputs_BT, asked_M = _posed(ids_BT, masking, [3, step, 1])
    assert asked_M is not None
    length = ids_BT.shape[1] - 1
    assert len(asked_M) == len(set(asked_M.tolist())) == len(ids) * max(1, round(share * length))
    is_hidden_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for place in asked_M.tolist():
        is_hidden_BT[place // length, place % length + 1] = True
    assert not is_hidden_BT[:, 0].any()
    assert (inputs_BT[is_hidden_BT] == 77).all()
    assert torch.equal(inputs_BT[~is_hidden_BT], ids_BT[~is_hidden_BT])
    # other tokens in the hidden places change nothing of what is read
    again_BT, again_M = _posed(torch.where(is_hidden_BT, other, ids_BT), masking, [3, step, 1])
    assert torch.equal(again_BT, inputs_BT)
    assert again_M is not None
    assert torch.equal(again_M, asked_M)


def test_a_hidden_token_is_predicted_from_the_state_before_it(sequences: np.ndarray) -> None:
    model = language_model(400, is_tied=False).eval()
    ids_BT = torch.from_numpy(sequences[:3].astype(np.int64))
    inputs_BT, asked_M = _posed(ids_BT, Masking(0.3, 5), [1])
    assert asked_M is not None
    found = scratch._loss(model, ids_BT, inputs_BT, asked_M, "fp32")
    logits_BTV = model.decoder(inputs_BT).last_hidden_state @ model.rows.T
    hidden = [(place // 15, place % 15 + 1) for place in asked_M.tolist()]
    expected = [
        torch.nn.functional.cross_entropy(logits_BTV[row, at - 1], ids_BT[row, at])
        for row, at in hidden
    ]
    torch.testing.assert_close(found, torch.stack(expected).mean())


@pytest.mark.parametrize("build", [qwen, gemma])
@pytest.mark.parametrize("settings", [SETTINGS, MASKED], ids=["causal", "masked"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_loss_falls(
    sequences: np.ndarray,
    tmp_path: Path,
    build: Callable[..., Any],
    settings: LanguageTraining,
    is_tied: bool,
) -> None:
    """Of what it has read: a dozen sentences tell nothing of others."""
    model = language_model(400, is_tied=is_tied, build=build)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = adapted(model, sequences, settings, tmp_path)
    assert [point.step for point in done.curve] == list(range(1, 13))
    assert done.curve[-1].loss < done.curve[0].loss - 0.3
    assert done.loss_after < done.loss_before
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert ("head" in before) is not is_tied
    assert is_causal(model.decoder.config) == (settings.masking is None)


@pytest.mark.parametrize("settings", [SETTINGS, MASKED], ids=["causal", "masked"])
@pytest.mark.parametrize("death", [1, 7])
def test_a_killed_adaptation_ends_with_the_same_bits(
    sequences: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: LanguageTraining,
    death: int,
) -> None:
    unbroken = language_model(400, is_tied=False)
    expected = adapted(unbroken, sequences, settings, tmp_path / "unbroken")
    take_step = scratch._Run.take_step
    taken: list[int] = []

    def die(run: scratch._Run, step: int) -> None:
        taken.append(step)
        if step == death + 1 and taken.count(step) == 1:
            raise KeyboardInterrupt
        take_step(run, step)

    monkeypatch.setattr(scratch._Run, "take_step", die)
    with pytest.raises(KeyboardInterrupt):
        adapted(language_model(400, is_tied=False), sequences, settings, tmp_path / "killed")
    resumed = language_model(400, is_tied=False)
    assert adapted(resumed, sequences, settings, tmp_path / "killed") == expected
    assert taken == [*range(1, death + 2), *range(death + 1, 13)]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_other_weights_are_not_continued(sequences: np.ndarray, tmp_path: Path) -> None:
    model = language_model(400, is_tied=True)
    adapted(model, sequences, SETTINGS, tmp_path)
    adapted(model, sequences, SETTINGS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_head_is_read_where_it_is_one_of_its_own(tmp_path: Path, is_tied: bool) -> None:
    whole = qwen(60, is_tied=is_tied)
    whole.save_pretrained(tmp_path)
    head = read_head(str(tmp_path), revision=None)
    assert (head is None) == is_tied
    assert head is None or torch.equal(head, whole.lm_head.weight)


def test_a_decoder_without_a_head_or_with_other_logits_is_refused(tmp_path: Path) -> None:
    qwen(60, is_tied=False).model.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"has no language-model head.*backbone\.adapt to null"):
        read_head(str(tmp_path / "headless"), revision=None)
    capped = Gemma2ForCausalLM(Gemma2Config(**SIZES, vocab_size=60, final_logit_softcapping=0.5))
    capped.save_pretrained(tmp_path / "capped")
    with pytest.raises(ValueError, match="Gemma2ForCausalLM are not its last states times a table"):
        read_head(str(tmp_path / "capped"), revision=None)


def test_the_mask_is_the_tokenizers_own_or_an_underscore(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert pico_tokenizer.convert_ids_to_tokens(mask_token_of(pico_tokenizer)) == "_"
    backend, names = pico_tokenizer.backend_tokenizer, {"mask_token": "<pad>"}
    own = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    assert mask_token_of(own) == own.convert_tokens_to_ids("<pad>")


def test_sequences_begin_as_texts_do(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    content = json.loads(pico_tokenizer.backend_tokenizer.to_str())
    first = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, first],
        "pair": [first, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
    }  # fmt: skip
    backend = type(pico_tokenizer.backend_tokenizer).from_str(json.dumps(content))
    names = {"bos_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    texts = ["Самовар стоит на столе.", "Чай пьют с мёдом."] * 3
    packed = pack_documents(tokenizer, texts, 8, max_tokens=1000)
    assert (packed[:, 0] == 0).all()
    plain = pack_documents(pico_tokenizer, texts, 7, max_tokens=1000)
    assert np.array_equal(packed[:, 1:], plain)
    nameless = PreTrainedTokenizerFast(tokenizer_object=pico_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no EOS token"):
        pack_documents(nameless, texts, 8, max_tokens=1000)


ADAPT: dict[str, Any] = {
    "objective": "masked", "mask_share": 0.2, "max_steps": 4, "batch_tokens": 64,
    "sequence_tokens": 16, "learning_rate": 1e-3, "warmup_steps": 1, "weight_decay": 0.01,
    "seed": 1,
}  # fmt: skip


@pytest.fixture
def untied(tmp_path: Path, pico_folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(pico_folder)
    for part in (qwen(len(tokenizer), is_tied=False), tokenizer):
        part.save_pretrained(tmp_path / "untied")
    return str(tmp_path / "untied")


@pytest.mark.parametrize("kind", ["keep", "trim", "extend"])
def test_the_stage_adapts_after_the_vocabulary(params: Params, untied: str, kind: str) -> None:
    vocabulary = {"kind": kind, "min_count": 1, "max_tokens": 380, **ADDED}
    plain = with_backbone(params, source=untied, vocabulary=vocabulary, **LOADED)
    tasks.backbone.body(plain)
    before = Encoder.load(ARTIFACTS / "backbone" / "model").backbone.state_dict()
    tasks.backbone.body(with_backbone(plain, adapt=ADAPT))
    folder = ARTIFACTS / "backbone"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["adapt"]["steps"] == 4
    assert metrics["adapt"]["held_out_tokens"] > 0
    assert metrics["adapt"]["held_out_loss_nats"] > 0
    assert metrics["adapt"].keys() > {"held_out_loss_nats_before", "final_loss_nats"}
    assert "causal_lm" not in metrics
    assert len((folder / "curves.csv").read_text().splitlines()) == 5
    after = Encoder.load(folder / "model").backbone.state_dict()
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in before.items()
    }
    assert not torch.equal(before["norm.weight"], after["norm.weight"])
    assert json.loads((folder / "proof.json").read_text())["attention"] == "bidirectional"


def test_a_killed_stage_ends_in_the_same_bytes(
    params: Params, untied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapting = with_backbone(params, source=untied, adapt=ADAPT, **LOADED)
    tasks.backbone.body(adapting)
    expected = contents(ARTIFACTS / "backbone")
    shutil.rmtree(ARTIFACTS / "backbone")
    monkeypatch.setattr(tasks.backbone, "ADAPTED_CHECKPOINT_INTERVAL_S", 0.0)
    take_step = scratch._Run.take_step
    taken: list[int] = []

    def die(run: scratch._Run, step: int) -> None:
        taken.append(step)
        if taken == [1, 2, 3]:
            raise KeyboardInterrupt
        take_step(run, step)

    monkeypatch.setattr(scratch._Run, "take_step", die)
    with pytest.raises(KeyboardInterrupt):
        tasks.backbone.body(adapting)
    assert not (ARTIFACTS / "backbone").exists()
    tasks.backbone.body(adapting)
    assert taken == [1, 2, 3, 3, 4]
    assert contents(ARTIFACTS / "backbone") == expected
    assert not any(CHECKPOINTS.glob("backbone/*"))


def test_without_adapt_no_weight_changes(params: Params, untied: str) -> None:
    tasks.backbone.body(with_backbone(params, source=untied, adapt=None, **LOADED))
    kept = Encoder.load(ARTIFACTS / "backbone" / "model").backbone.state_dict()
    whole = Qwen3ForCausalLM.from_pretrained(untied).model.state_dict()
    assert kept.keys() == whole.keys()
    assert all(torch.equal(kept[name], value) for name, value in whole.items())


def test_too_few_documents_are_an_error(params: Params, untied: str) -> None:
    long = ADAPT | {"sequence_tokens": 100_000}
    with pytest.raises(StageError, match="one sequence needs 100000: give more documents"):
        tasks.backbone.body(with_backbone(params, source=untied, adapt=long, **LOADED))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": ADAPT}, "adapt is of decoders from elsewhere.*set adapt to null"),
        (
            {"source": "models/x", "scratch": None, "adapt": ADAPT | {"mask_share": None}},
            "mask_share None with objective masked: masked needs a number",
        ),
        (
            {"source": "models/x", "scratch": None, "adapt": ADAPT | {"objective": "causal"}},
            "mask_share 0.2 with objective causal",
        ),
        (
            {"source": "models/x", "scratch": None, "adapt": ADAPT, "attention": "causal"},
            "masked trains attention on two sides, but attention is causal",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    params: Params, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        with_backbone(params, **changes)
