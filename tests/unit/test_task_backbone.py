"""Stages backbone and prune on pico sizes: what they write, refuse and continue."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer, MptConfig, MptModel

import tasks.backbone
import tasks.prune
from model.backbone import scratch
from model.encoder.encoder import Encoder
from tasks.contract.records import write_table
from tasks.contract.stage import StageError
from tasks.machine.compute import Machine, use_compute
from tasks.params.load import Backbone, Compute, Params, load_params
from tasks.params.paths import ARTIFACTS, BASE, CHECKPOINTS
from tasks.store.storage import Storage

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
PICO = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_steps": 4,
    "batch_tokens": 64,
    "sequence_tokens": 16,
    "warmup_steps": 1,
}
LOADED: dict[str, Any] = {"scratch": None}
ADDED = {"new_tokens": 30, "initial": "mean"}


@pytest.fixture(autouse=True)
def own_torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico_texts: list[str]) -> Params:
    """The sample profile at pico size, in an empty working folder with ingested documents."""
    monkeypatch.chdir(tmp_path)
    rows = len(pico_texts)
    table = pa.table(
        {
            "id": [str(number) for number in range(rows)],
            "source": ["s"] * rows,
            "lang": ["ru"] * rows,
            "title": [""] * rows,
            "text": pico_texts,
        }
    )
    write_table(table, ARTIFACTS / "ingest" / "documents")
    examples = [{"query": text, "positives": [text], "negatives": []} for text in pico_texts]
    write_table(pa.Table.from_pylist(examples), ARTIFACTS / "ingest" / "examples")
    full = load_params(PROFILE)
    assert full.backbone.scratch is not None
    pico = full.backbone.scratch.model_copy(update=PICO)
    return with_backbone(full, scratch=pico, num_latents=4, num_latent_heads=2, latent_head_dim=4)


def with_backbone(params: Params, **changes: object) -> Params:
    values = params.backbone.model_dump() | changes
    backbone = Backbone.model_validate(
        {
            name: value.model_dump()
            if name == "scratch" and hasattr(value, "model_dump")
            else value
            for name, value in values.items()
        }
    )
    return params.model_copy(update={"backbone": backbone})


def with_prune(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"prune": params.prune.model_copy(update=changes)})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_scratch_gives_a_proven_encoder_its_metrics_and_its_curve(params: Params) -> None:
    tasks.backbone.body(params)
    folder = ARTIFACTS / "backbone"
    assert {path.name for path in folder.iterdir()} == {
        "base",
        "model",
        "proof.json",
        "metrics.json",
        "curves.csv",
    }
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["attention"] == "bidirectional"
    assert set(proof["implementations"]) == {"eager", "packed_sdpa", "sdpa"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_layers"] == 4
    assert metrics["causal_lm"]["steps"] == 4
    lines = (folder / "curves.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate"
    assert len(lines) == 5
    encoder = Encoder.load(folder / "model")
    assert encoder.embedding_size == 32
    assert metrics["parameters"] == sum(weight.numel() for weight in encoder.parameters())
    assert encoder.prompts["query"] == encoder.prompts["retrieval"]
    assert encoder.prompts["document"] == ""


@pytest.mark.parametrize("pooling", ["mean", "last", "latent", "multilayer"])
def test_equal_runs_give_equal_bytes(params: Params, pooling: str) -> None:
    pooled = with_backbone(params, pooling=pooling)
    tasks.backbone.body(pooled)
    first = contents(ARTIFACTS / "backbone")
    tasks.backbone.body(pooled)
    assert contents(ARTIFACTS / "backbone") == first
    assert not any(CHECKPOINTS.glob("backbone/*"))


def test_a_killed_run_is_continued_and_gives_the_same_bytes(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.backbone.body(params)
    expected = contents(ARTIFACTS / "backbone")
    shutil.rmtree(ARTIFACTS / "backbone")
    monkeypatch.setattr(tasks.backbone, "CHECKPOINT_INTERVAL_S", 0.0)
    take_step = scratch._Run.take_step
    taken: list[int] = []

    def die(run: scratch._Run, step: int) -> None:
        if step == 3 and 2 in taken and taken.count(1) == 1 and 3 not in taken:
            taken.append(3)
            raise KeyboardInterrupt
        taken.append(step)
        take_step(run, step)

    monkeypatch.setattr(scratch._Run, "take_step", die)
    with pytest.raises(KeyboardInterrupt):
        tasks.backbone.body(params)
    assert not (ARTIFACTS / "backbone").exists()
    tasks.backbone.body(params)
    assert taken == [1, 2, 3, 3, 4]
    assert contents(ARTIFACTS / "backbone") == expected


def test_only_an_equal_run_is_continued(params: Params) -> None:
    machine = Machine(torch.device("cpu"), "fp32")
    key = tasks.backbone._run_key(params, machine)
    assert key == tasks.backbone._run_key(params, machine)
    assert params.backbone.scratch is not None
    other_seed = params.backbone.scratch.model_copy(update={"seed": 9})
    assert tasks.backbone._run_key(with_backbone(params, scratch=other_seed), machine) != key
    shutil.rmtree(ARTIFACTS / "ingest" / "documents")
    write_table(pa.table({"text": ["Да."]}), ARTIFACTS / "ingest" / "documents")
    assert tasks.backbone._run_key(params, machine) != key


def test_a_run_of_other_arithmetic_is_not_continued(params: Params) -> None:
    cpu = torch.device("cpu")
    machines = [Machine(cpu, "fp32"), Machine(cpu, "bf16"), Machine(cpu, "fp32", True)]
    assert len({tasks.backbone._run_key(params, machine) for machine in machines}) == 3


def test_a_folder_becomes_an_encoder(
    params: Params, pico_folder: Path, pico_texts: list[str]
) -> None:
    tasks.backbone.body(with_backbone(params, source=str(pico_folder), **LOADED))
    ours = Encoder.load(ARTIFACTS / "backbone" / "model").encode(pico_texts, batch_tokens=500)
    expected = Encoder.load(pico_folder).encode(pico_texts, batch_tokens=500)
    np.testing.assert_array_equal(ours, expected)
    assert (ARTIFACTS / "backbone" / "curves.csv").read_text() == "step,loss,learning_rate\n"


def test_an_s3_prefix_is_downloaded_first(
    params: Params, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, str | None]] = []

    def open_local(url: str, endpoint_url: str | None) -> Storage:
        opened.append((url, endpoint_url))
        return Storage(str(pico_folder), None)

    monkeypatch.setattr(tasks.backbone, "open_storage", open_local)
    tasks.backbone.body(with_backbone(params, source="s3://models/pico", **LOADED))
    assert opened == [("s3://models/pico", None)]
    metrics = json.loads((ARTIFACTS / "backbone" / "metrics.json").read_text())
    assert metrics["source"] == "s3://models/pico"
    assert metrics["num_layers"] == 3


def test_licence_and_terms_of_the_decoder_are_kept(
    params: Params, pico_folder: Path, tmp_path: Path
) -> None:
    """As the record of `make base` says, or else the card of the hub."""
    decoder = tmp_path / "decoder"
    shutil.copytree(pico_folder, decoder)
    (decoder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (decoder / "LICENSE.txt").write_text("Terms.")
    own = with_backbone(params, source=str(decoder), **LOADED)
    tasks.backbone.body(own)
    record = json.loads((BASE / "base.json").read_text())
    expected = {"origin": str(decoder), "commit": None, "licence": "apache-2.0"}
    assert record == expected | {"notices": ["LICENSE.txt"]}
    assert (BASE / "LICENSE.txt").read_text() == "Terms."
    fetched = {"origin": "somebody/tiny", "commit": "c0ffee", "licence": "gemma"}
    (decoder / "base.json").write_text(json.dumps(fetched))
    tasks.backbone.body(own)
    assert json.loads((BASE / "base.json").read_text()) == fetched | {"notices": ["LICENSE.txt"]}
    (decoder / "base.json").write_text("{}")
    with pytest.raises(StageError, match="fetch them again"):
        tasks.backbone.body(own)


def test_a_trimmed_vocabulary_gives_texts_the_same_vectors(
    params: Params, pico_folder: Path, pico_texts: list[str]
) -> None:
    loaded = with_backbone(params, source=str(pico_folder), **LOADED)
    tasks.backbone.body(loaded)
    whole = Encoder.load(ARTIFACTS / "backbone" / "model")
    # the least frequent are dropped: fewer tokens than these texts are made of
    vocabulary = {"kind": "trim", "min_count": 1, "max_tokens": 340, **ADDED}
    tasks.backbone.body(with_backbone(loaded, vocabulary=vocabulary))
    folder = ARTIFACTS / "backbone"
    trimmed = Encoder.load(folder / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["vocabulary"]
    assert metrics["vocab_size"] == found["tokens"] <= 340 < found["tokens_before"] == 400
    assert 0 < found["same_texts_share"] < 1
    assert found["bytes_per_token"] < found["bytes_per_token_before"]
    assert found["weights_before"] - found["weights"] == 32 * (400 - found["tokens"])
    same = [
        text
        for text in pico_texts
        if len(whole.tokenizer(text).input_ids) == len(trimmed.tokenizer(text).input_ids)
    ]
    assert 0 < len(same) < len(pico_texts)
    assert np.array_equal(*(each.encode(same, batch_tokens=512) for each in (whole, trimmed)))


@pytest.mark.parametrize("initial", ["mean", "similar"])
def test_an_extended_vocabulary_has_fewer_tokens_per_text(
    params: Params, pico_folder: Path, pico_texts: list[str], initial: str
) -> None:
    vocabulary = {
        "kind": "extend", "min_count": 2, "max_tokens": None, "new_tokens": 30, "initial": initial,
    }  # fmt: skip
    loaded = with_backbone(params, source=str(pico_folder), vocabulary=vocabulary, **LOADED)
    tasks.backbone.body(loaded)
    folder = ARTIFACTS / "backbone"
    encoder = Encoder.load(folder / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["vocabulary"]
    assert metrics["vocab_size"] == found["tokens"] == len(encoder.tokenizer) == 430
    assert found["tokens_before"] == 400
    assert found["weights"] - found["weights_before"] == 32 * 30
    assert found["bytes_per_token"] > found["bytes_per_token_before"]
    assert 0 <= found["same_texts_share"] < 1
    whole = AutoTokenizer.from_pretrained(pico_folder)
    assert sum(len(encoder.tokenizer(text).input_ids) for text in pico_texts) < sum(
        len(whole(text).input_ids) for text in pico_texts
    )
    first = contents(folder)
    tasks.backbone.body(loaded)
    assert contents(folder) == first


def test_texts_too_few_to_extend_by_are_an_error(params: Params, pico_folder: Path) -> None:
    vocabulary = {"kind": "extend", "min_count": 10**6, "max_tokens": None, **ADDED}
    loaded = with_backbone(params, source=str(pico_folder), vocabulary=vocabulary, **LOADED)
    with pytest.raises(StageError, match="no token to add"):
        tasks.backbone.body(loaded)


def test_a_language_that_the_decoder_hardly_knows_is_said(
    params: Params, pico_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(ARTIFACTS / "ingest" / "examples")
    strange = [{"query": "ዓለም አቀፍ ሰላም", "positives": ["日本語の文章"] * 40, "negatives": []}]
    write_table(pa.Table.from_pylist(strange * 40), ARTIFACTS / "ingest" / "examples")
    tasks.backbone.body(with_backbone(params, source=str(pico_folder), **LOADED))
    assert "hardly knows their language" in caplog.text


def test_causal_attention_is_proven_too(params: Params, pico_folder: Path) -> None:
    changes = LOADED | {"source": str(pico_folder), "attention": "causal", "pooling": "last"}
    tasks.backbone.body(with_backbone(params, **changes))
    proof = json.loads((ARTIFACTS / "backbone" / "proof.json").read_text())
    assert proof["implementations"]["sdpa"]["first_state_change"] == 0.0


def test_a_revision_of_a_folder_is_refused(params: Params, pico_folder: Path) -> None:
    changes = LOADED | {"source": str(pico_folder), "revision": "abc"}
    with pytest.raises(StageError, match="revision 'abc' is for hub ids"):
        tasks.backbone.body(with_backbone(params, **changes))


def test_a_source_that_does_not_exist_leaves_nothing(params: Params) -> None:
    with pytest.raises(StageError, match="there is no such folder"):
        tasks.backbone.body(with_backbone(params, source="./missing", **LOADED))
    assert not (ARTIFACTS / "backbone").exists()


def test_a_type_whose_own_code_fails_is_named(
    params: Params, pico_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pico_folder)
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=len(tokenizer))
    for part in (MptModel(config), tokenizer):
        part.save_pretrained(tmp_path / "mpt")
    changes = LOADED | {"source": str(tmp_path / "mpt"), "attn_implementation": "eager"}
    with pytest.raises(StageError, match=r"MptModel \(mpt\) fails as an encoder, .*take another"):
        tasks.backbone.body(with_backbone(params, **changes))
    assert "Traceback" in caplog.text
    assert not (ARTIFACTS / "backbone").exists()


def test_longer_texts_than_the_positions_need_scaled_positions(
    params: Params, pico_folder: Path
) -> None:
    long = {"source": str(pico_folder), "max_length_tokens": 40_000, **LOADED}
    with pytest.raises(StageError, match=r"40000 exceeds the 32768 positions.*at least 1\.22"):
        tasks.backbone.body(with_backbone(params, **long))
    scaling = {"type": "yarn", "factor": 2.0}
    tasks.backbone.body(with_backbone(params, rope_scaling=scaling, **long))
    config = Encoder.load(ARTIFACTS / "backbone" / "model").backbone.config
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.max_position_embeddings == 65_536


def test_every_switch_of_the_vectors_reaches_the_folder(
    params: Params, pico_folder: Path, pico_texts: list[str]
) -> None:
    source = {"source": str(pico_folder), **LOADED}
    tasks.backbone.body(with_backbone(params, **source))
    plain = Encoder.load(ARTIFACTS / "backbone" / "model").encode(pico_texts, batch_tokens=500)
    tasks.backbone.body(
        with_backbone(
            params,
            pooling="multilayer",
            layer_tokens="last",
            projection=12,
            attention_temperature=0.8,
            **source,
        )
    )
    encoder = Encoder.load(ARTIFACTS / "backbone" / "model")
    assert encoder.settings.layer_tokens == "last"
    assert encoder.encode(pico_texts, batch_tokens=500).shape == (len(plain), 12)
    norms = [
        each.backbone.layers[0].self_attn.q_norm.weight
        for each in (encoder, Encoder.load(pico_folder))
    ]
    torch.testing.assert_close(norms[0] * 0.8, norms[1])


def test_missing_documents_name_the_stage_to_run(params: Params) -> None:
    shutil.rmtree(ARTIFACTS / "ingest")
    with pytest.raises(StageError, match="documents"):
        tasks.backbone.body(params)


def test_a_template_that_glues_prompt_and_text_is_refused(params: Params) -> None:
    """Otherwise the published model would give other vectors in sentence-transformers."""
    with pytest.raises(StageError, match="pool_prompt is off: end the template with a line feed"):
        tasks.backbone.body(with_backbone(params, pool_prompt=False))


def test_prune_removes_a_quarter_and_proves_the_rest(params: Params) -> None:
    tasks.backbone.body(params)
    tasks.prune.body(params)
    folder = ARTIFACTS / "prune"
    assert {path.name for path in folder.iterdir()} == {"model", "proof.json", "metrics.json"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["blocks_before"], metrics["blocks_after"]) == (4, 3)
    scores = metrics["block_influence"]
    assert len(scores) == 4
    assert metrics["removed"] == str(min(range(4), key=lambda block: scores[f"block_{block:03d}"]))
    assert Encoder.load(folder / "model").backbone.config.num_hidden_layers == 3
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["attention"] == "bidirectional"


@pytest.mark.parametrize("method", ["block_influence", "angular_distance", "deepest"])
def test_every_method_gives_equal_bytes_each_time(params: Params, method: str) -> None:
    pruned = with_prune(params, method=method, fraction=0.5, calibration_documents=5)
    tasks.backbone.body(params)
    tasks.prune.body(pruned)
    first = contents(ARTIFACTS / "prune")
    tasks.prune.body(pruned)
    assert contents(ARTIFACTS / "prune") == first
    metrics = json.loads(first["metrics.json"])
    assert len(metrics["removed"].split(",")) == 2
    if method == "deepest":
        assert metrics["removed"] == "1,2"


@pytest.mark.parametrize("pooling", ["mean", "last", "latent", "multilayer"])
def test_a_fraction_of_zero_is_the_identity(params: Params, pooling: str) -> None:
    pooled = with_prune(with_backbone(params, pooling=pooling), fraction=0.0)
    tasks.backbone.body(pooled)
    tasks.prune.body(pooled)
    assert contents(ARTIFACTS / "prune" / "model") == contents(ARTIFACTS / "backbone" / "model")
    metrics = json.loads((ARTIFACTS / "prune" / "metrics.json").read_text())
    assert metrics["removed"] == ""


def test_prune_without_a_backbone_says_which_stage_to_run(params: Params) -> None:
    with pytest.raises(StageError, match="run the stage backbone"):
        tasks.prune.body(params)


def compute_of(device: str, precision: str) -> Compute:
    """One process with one thread."""
    values = {"threads": 1, "processes": 1, "parallel": "ddp", "compile_blocks": False}
    return Compute.model_validate({"device": device, "precision": precision, **values})


def test_compute_sets_threads_and_deterministic_kernels() -> None:
    machine = use_compute(compute_of("cpu", "fp32"))
    assert machine == Machine(torch.device("cpu"), "fp32")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_cuda_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageError, match=r"compute\.device is cuda"):
        use_compute(compute_of("cuda", "auto"))
    machine = use_compute(compute_of("auto", "auto"))
    assert machine.device == torch.device("cpu")


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_instructions_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: str
) -> None:
    """Emulated bfloat16 made the language model of the sample train at 86 tokens a second."""
    monkeypatch.setattr("model.encoder.precision.has_bf16_instructions", lambda _: has_it)
    assert use_compute(compute_of("cpu", "auto")).precision == expected


def test_bf16_on_a_processor_without_it_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.machine.compute.has_bf16_instructions", lambda _: False)
    assert use_compute(compute_of("cpu", "bf16")).precision == "bf16"
    assert "emulates" in caplog.text
