"""The contrastive stages on tables and a pico model: sources, outputs, resume, errors."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from model.encoder.encoder import Encoder
from model.training.stopping import TrainingStoppedError
from model.training.trainer import NonFiniteLossError
from tasks.contract.records import EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.machine.compute import Machine
from tasks.multitask import body as multitask
from tasks.params.load import Params, load_params
from tasks.params.losses import Teacher
from tasks.pretrain import body as pretrain
from tasks.training import contrastive
from tasks.training.contrastive import (
    ContrastiveStage,
    load_sources,
    run_training,
    warn_about_idle_rows,
)

CPU = Machine(torch.device("cpu"), "fp32")
PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
TRAINING: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 8,
    "micro_batch_tokens": 4096,
    "max_length_tokens": 48,
    "warmup_steps": 1,
    "matryoshka_dims": [8],
    "hard_negatives": 2,
    "class_negatives": "own",
    "source_temperature": 0.5,
    "log_every_steps": 2,
    "checkpoint_every_steps": 2,
}


def examples(source: str, task: str, count: int, *, negatives: int = 0, **fields: Any) -> pa.Table:
    rows = [
        {
            "id": f"{source}-{task}-{n}",
            "task": task,
            "source": source,
            "lang": "ru",
            "query": f"{source} вопрос {n}",
            "positives": [f"{source} ответ {n}"],
            "positive_scores": None,
            "negatives": [f"{source} мимо {n} {k}" for k in range(negatives)],
            "negative_scores": None,
            "label": None,
            "score": n / count if task == "sts" else None,
            **fields,
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico_folder: Path) -> Path:
    """A folder with ingested examples and a base model for every stage."""
    monkeypatch.chdir(tmp_path)
    artifacts = tmp_path / "artifacts"
    write_table(
        pa.concat_tables(
            [
                examples("titles", "retrieval", 20),
                examples("questions", "retrieval", 12, negatives=1),
                examples("topics", "classification", 10, negatives=3),
                examples("paraphrases", "sts", 9),
            ]
        ),
        artifacts / "ingest" / "examples",
    )
    write_table(examples("synthetic", "retrieval", 10), artifacts / "synthesize" / "examples")
    write_table(
        examples("questions", "retrieval", 11, negatives=4), artifacts / "mine" / "examples"
    )
    for stage in ("prune", "finetune"):
        (artifacts / stage).mkdir()
        (artifacts / stage / "model").symlink_to(pico_folder)
    return tmp_path


def params_of(folder: Path, **sections: dict[str, Any]) -> Params:
    """The sample profile with pico numbers and `sections` merged into it."""
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    content["compute"] = {
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "processes": 1,
        "parallel": "ddp",
        "compile_blocks": False,
    }
    for stage in ("pretrain", "finetune", "multitask"):
        content[stage]["training"] |= TRAINING
    content["pretrain"]["sources"] = {"titles": 1.0, "synthetic": 1.0}
    content["finetune"]["sources"] = {"questions": 1.0, "titles": 0.5}
    content["multitask"]["variants"] = {
        "one": {"sources": {"questions": 1.0, "topics": 1.0, "paraphrases": 1.0}, "seed": 5}
    }
    for name in ("balanced", "retrieval"):
        del content["evaluate"]["checkpoints"][f"multitask-{name}"]
    for name, section in sections.items():
        content[name] |= section
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_params(path)


def stage_of(params: Params, weights: dict[str, float], *, is_mined: bool = False) -> Any:
    folder = Path("artifacts")
    return ContrastiveStage(
        name="pretrain",
        training=params.pretrain.training,
        weights=weights,
        base=folder / "prune" / "model",
        output=folder / "pretrain",
        is_mined=is_mined,
    )


# ---- sources


def test_each_named_source_comes_with_its_rows_prompts_and_weight(workspace: Path) -> None:
    params = params_of(workspace)
    stage = stage_of(params, {"synthetic": 0.5, "topics": 2.0, "titles": 1.0})
    sources = load_sources(params.prompts, stage)
    assert [(s.name, s.task, s.table.num_rows, s.weight) for s in sources] == [
        ("synthetic", "retrieval", 10, 0.5),
        ("topics", "classification", 10, 2.0),
        ("titles", "retrieval", 20, 1.0),
    ]
    assert sources[0].prompt == "вопрос: "
    assert sources[0].document_prompt == ""
    assert sources[1].document_prompt == sources[1].prompt


def test_mined_rows_take_the_place_of_the_rows_they_were_mined_for(workspace: Path) -> None:
    params = params_of(workspace)
    for is_mined, expected in ((False, [1] * 12), (True, [1] + [4] * 11)):
        stage = stage_of(params, {"questions": 1.0}, is_mined=is_mined)
        [source] = load_sources(params.prompts, stage)
        assert sorted(map(len, source.table["negatives"].to_pylist())) == expected
        assert len(set(source.table["id"].to_pylist())) == 12


def test_synthetic_rows_of_two_tasks_become_two_sources(workspace: Path) -> None:
    folder = workspace / "artifacts" / "synthesize" / "examples"
    for path in folder.iterdir():
        path.unlink()
    both = [
        examples("synthetic", "retrieval", 5),
        examples("synthetic", "classification", 4, negatives=1),
    ]
    write_table(pa.concat_tables(both), folder)
    params = params_of(workspace)
    sources = load_sources(params.prompts, stage_of(params, {"synthetic": 1.0}))
    assert [(s.name, s.table.num_rows) for s in sources] == [
        ("synthetic-classification", 4),
        ("synthetic-retrieval", 5),
    ]


def rewrite(workspace: Path, table: pa.Table) -> None:
    folder = workspace / "artifacts" / "ingest" / "examples"
    for path in folder.iterdir():
        path.unlink()
    write_table(table, folder)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (examples("other", "retrieval", 5), "source 'titles' has 0 training rows.*: other"),
        (examples("titles", "retrieval", 1), "has 1 training rows, at least 2"),
        (examples("titles", "sts", 4, score=None), "4 of 4 rows have no score"),
        (examples("titles", "classification", 4), "no row has a negative"),
        (examples("titles", "retrieval", 4, positives=[]), "4 of 4 rows have no positive"),
    ],
)
def test_a_source_that_cannot_be_trained_on_is_named(
    workspace: Path, table: pa.Table, message: str
) -> None:
    rewrite(workspace, table)
    params = params_of(workspace)
    with pytest.raises(StageError, match=message):
        load_sources(params.prompts, stage_of(params, {"titles": 1.0}))


def test_in_batch_negatives_of_classes_need_a_label_in_each_row(workspace: Path) -> None:
    training = load_params(PROFILE).pretrain.training.model_dump() | {"class_negatives": "batch"}
    params = params_of(workspace, pretrain={"training": training})
    stage = stage_of(params, {"titles": 1.0, "topics": 1.0})
    rewrite(
        workspace,
        pa.concat_tables(
            [
                examples("titles", "retrieval", 4),
                examples("topics", "classification", 10, negatives=1, label=None),
            ]
        ),
    )
    message = "'topics' of task classification: 10 of 10 rows have no label"
    with pytest.raises(StageError, match=message):
        load_sources(params.prompts, stage)
    rewrite(
        workspace,
        pa.concat_tables(
            [
                examples("titles", "retrieval", 4),
                examples("topics", "classification", 10, label="a"),
            ]
        ),
    )
    assert len(load_sources(params.prompts, stage)) == 2, "in-batch negatives need no own ones"


def own_negatives_only(params: Params, **training: Any) -> Any:
    """A stage of the questions without in-batch negatives, as stage 3 of GigaEmbeddings."""
    values = {"loss": "nv-embed-2"} | training
    changed = params.pretrain.training.model_copy(update=values)
    return replace(stage_of(params, {"questions": 1.0}), training=changed)


def test_a_loss_without_in_batch_negatives_refuses_a_source_that_has_none(workspace: Path) -> None:
    """Its loss would be 0 at every step, and the training would seem to be perfect."""
    rewrite(workspace, examples("questions", "retrieval", 5))
    params = params_of(workspace)
    with pytest.raises(StageError, match=r"'questions'.*no row has a negative.*mine\.sources"):
        load_sources(params.prompts, own_negatives_only(params))
    assert load_sources(params.prompts, stage_of(params, {"questions": 1.0}))


def test_a_teacher_or_softmaxes_of_ones_own_decide_whether_negatives_are_needed(
    workspace: Path,
) -> None:
    rewrite(workspace, examples("questions", "retrieval", 5))
    params = params_of(workspace)
    teacher = Teacher.model_validate(ADDED["teacher"])
    assert load_sources(params.prompts, own_negatives_only(params, teacher=teacher))
    softmaxes = [["own_negatives"], ["queries"]]
    assert load_sources(params.prompts, own_negatives_only(params, softmaxes=softmaxes))
    only_own = own_negatives_only(params, loss="giga", softmaxes=[["own_negatives"]])
    with pytest.raises(StageError, match="no row has a negative"):
        load_sources(params.prompts, only_own)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_own_negatives_alone_and_none_asked_for_is_refused(workspace: Path, task: str) -> None:
    rewrite(workspace, examples("questions", task, 5, negatives=2))
    params = params_of(workspace)
    with pytest.raises(StageError, match="hard_negatives is 0"):
        load_sources(params.prompts, own_negatives_only(params, hard_negatives=0))


def test_rows_that_add_nothing_to_the_loss_are_counted(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = examples("questions", "retrieval", 5)
    more = examples("questions", "retrieval", 8, negatives=1).slice(5)
    rewrite(workspace, pa.concat_tables([few, more]))
    params = params_of(workspace)
    stage = own_negatives_only(params)
    sources = load_sources(params.prompts, stage)
    warn_about_idle_rows(sources, params.pretrain.training)
    assert not caplog.text
    warn_about_idle_rows(sources, stage.training)
    assert "source questions: 5 of 8 rows have no negative of their own" in caplog.text


# ---- outputs


def outputs(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_pretrain_writes_model_metrics_curves_and_log(workspace: Path) -> None:
    pretrain(params_of(workspace))
    folder = workspace / "artifacts" / "pretrain"
    assert sorted(path.name for path in folder.iterdir()) == [
        "curves.csv",
        "metrics.json",
        "model",
        "training.jsonl",
    ]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 6
    assert metrics["pairs_seen"] == 48
    assert metrics["rows"] == {"titles": 20, "synthetic": 10}
    assert metrics["embedding_size"] == Encoder.load(folder / "model").embedding_size
    assert metrics["last_loss"] < metrics["first_loss"]
    assert not (workspace / ".samovar" / "checkpoints" / "pretrain").exists()


def test_micro_batches_of_auto_are_of_the_documented_size_on_a_processor(workspace: Path) -> None:
    """The sample profile's own number is the same, so the outputs are too."""
    pretrain(params_of(workspace))
    expected = outputs(workspace / "artifacts" / "pretrain")
    profile = load_params(PROFILE).pretrain.training.model_dump()
    training = {**profile, **TRAINING, "micro_batch_tokens": "auto"}
    pretrain(params_of(workspace, pretrain={"training": training}))
    assert outputs(workspace / "artifacts" / "pretrain") == expected


def test_adapters_and_memory_of_a_section_reach_the_training(workspace: Path) -> None:
    profile = load_params(PROFILE).pretrain.training.model_dump()
    training = {
        **profile, **TRAINING,
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj"]},
        "memory": {"batches": 2, "from_step": 2},
        "activation_checkpointing": True,
    }  # fmt: skip
    pretrain(params_of(workspace, pretrain={"training": training}))
    metrics = json.loads((workspace / "artifacts/pretrain/metrics.json").read_text())
    assert metrics["memory_negatives"] > 1
    assert Encoder.load(workspace / "artifacts/pretrain/model").embedding_size == 32


def test_the_multitask_variant_has_its_own_sources_seed_and_folder(workspace: Path) -> None:
    multitask("one", params_of(workspace))
    metrics = json.loads((workspace / "artifacts/multitask/one/metrics.json").read_text())
    assert metrics["rows"] == {"questions": 12, "topics": 10, "paraphrases": 9}
    assert metrics["by_source"].keys() <= metrics["rows"].keys()


def test_an_unknown_variant_names_the_known_ones(workspace: Path) -> None:
    with pytest.raises(StageError, match=r"no variant 'two'.*one of one"):
        multitask("two", params_of(workspace))


def test_a_small_source_is_trained_on_with_a_warning(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = {**load_params(PROFILE).pretrain.training.model_dump(), **TRAINING, "batch_size": 16}
    with caplog.at_level(logging.WARNING):
        pretrain(params_of(workspace, pretrain={"training": training}))
    assert "source synthetic has 10 rows, below batch_size 16" in caplog.text


@pytest.mark.parametrize(("batches", "sub_batches"), [("mixed", 1), ("interleaved", 4)])
def test_a_stage_of_all_tasks_trains_on_composed_batches(
    workspace: Path, batches: str, sub_batches: int
) -> None:
    training = {**load_params(PROFILE).multitask.training.model_dump(), **TRAINING}
    training |= {"batches": batches, "sub_batches": sub_batches}
    multitask("one", params_of(workspace, multitask={"training": training}))
    metrics = json.loads((workspace / "artifacts/multitask/one/metrics.json").read_text())
    assert metrics["pairs_seen"] == 6 * 8
    assert list(metrics["by_source"]) == [batches]
    assert len([*(workspace / ".samovar" / "corpora").glob("*/")]) == 1


# ---- interruptions


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, error: Exception) -> None:
    """Make the next training raise `error` after this step, as a death of the process would."""
    real = contrastive.train

    def dying(*arguments: Any, **options: Any) -> dict[str, Any]:
        def on_step(record: Any) -> None:
            if record.step == after:
                monkeypatch.undo()
                raise error

        return real(*arguments, **options, on_step=on_step)

    monkeypatch.setattr(contrastive, "train", dying)


def test_an_interrupted_stage_run_again_writes_equal_bytes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(workspace)
    pretrain(params)
    expected = outputs(workspace / "artifacts" / "pretrain")
    with monkeypatch.context() as patch:
        interrupt(patch, after=5, error=KeyboardInterrupt())  # pyright: ignore[reportArgumentType]  # any way to die
        with pytest.raises(KeyboardInterrupt):
            pretrain(params)
    [work] = (workspace / ".samovar" / "checkpoints" / "pretrain").iterdir()
    assert (work / "steps").is_dir()
    pretrain(params)
    assert outputs(workspace / "artifacts" / "pretrain") == expected


def test_a_stop_by_sigterm_exits_with_143(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, after=3, error=TrainingStoppedError("stopped after step 3"))
    with pytest.raises(SystemExit) as exit_info:
        pretrain(params_of(workspace))
    assert exit_info.value.code == 143


def test_divergence_is_a_message_not_a_trace(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, after=2, error=NonFiniteLossError("step 2: loss nan"))
    with pytest.raises(StageError, match="step 2: loss nan"):
        pretrain(params_of(workspace))


@pytest.mark.parametrize("change", ["training", "prompts", "data"])
def test_a_checkpoint_of_other_values_prompts_or_data_is_not_continued(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, after=5, error=TrainingStoppedError("stopped"))
        with pytest.raises(SystemExit):
            pretrain(params_of(workspace))
    values: dict[str, dict[str, Any]] = {}
    if change == "training":
        profile = load_params(PROFILE).pretrain.training.model_dump()
        values = {"pretrain": {"training": {**profile, **TRAINING, "learning_rate": 2e-3}}}
    elif change == "prompts":
        values = {"prompts": {"template": "{instruction}? {text}"}}
    else:
        rewrite(workspace, examples("titles", "retrieval", 21))
    params = params_of(workspace, **values)
    seen: list[int] = []
    real = contrastive.train
    monkeypatch.setattr(
        contrastive, "train", lambda *a, **o: real(*a, **o, on_step=lambda r: seen.append(r.step))
    )
    run_training(params, stage_of(params, {"titles": 1.0, "synthetic": 1.0}))
    assert seen == [1, 2, 3, 4, 5, 6]


# ---- guide, teacher and what else may be added

FROZEN = {"query_prompt": None, "document_prompt": None}
ADDED: dict[str, Any] = {
    "softmaxes": [["own_negatives"], ["other_positives", "queries"]],
    "class_negatives": "batch",
    "student_margin": {"margin": 0.1, "kind": "absolute", "in_batch": True, "explicit": False},
    "guide": FROZEN
    | {"margin": 0.0, "kind": "absolute", "in_batch": True, "explicit": True}
    | {"checkpoint": "prune/model"},
    "soft_labels": {"weight": 0.5, "teacher_temperature": 0.05},
    "triplet": {"weight": 1.0, "margin": 0.1},
    "teacher": FROZEN
    | {"checkpoint": "prune/model", "embeddings": {"weight": 1.0, "size": 8}}
    | {
        "similarities": {"weight": 1.0, "teacher_temperature": 0.05},
        "whitening": None,
        "fit_texts": None,
    },
    "matryoshka_weights": {8: 0.5},
    "margin_from_step": 1,
}


def test_a_training_with_all_that_may_be_added_logs_every_term_and_mask(workspace: Path) -> None:
    scored = {"positive_scores": [0.9], "negative_scores": [0.1, 0.3]}
    rewrite(
        workspace,
        pa.concat_tables(
            [
                examples("titles", "retrieval", 20, negatives=2, **scored),
                examples("topics", "classification", 12, negatives=2, label="a"),
                examples("paraphrases", "sts", 9),
            ]
        ),
    )
    training = load_params(PROFILE).pretrain.training.model_dump() | TRAINING | ADDED
    training |= {"max_steps": 12, "warmup_steps": 1}
    sources = {"titles": 1.0, "topics": 1.0, "paraphrases": 1.0}
    pretrain(params_of(workspace, pretrain={"training": training, "sources": sources}))
    folder = workspace / "artifacts" / "pretrain"
    lines = (folder / "training.jsonl").read_text().splitlines()
    by_source = {record["source"]: record for record in map(json.loads, lines)}
    assert by_source["titles"]["losses"].keys() == {
        *("contrastive", "soft_labels", "triplet", "embeddings", "similarities")
    }
    assert by_source["paraphrases"]["losses"].keys() == {"cosent", "embeddings", "similarities"}
    for record in by_source.values():
        assert sum(record["losses"].values()) == pytest.approx(record["loss"], rel=1e-5)
    assert by_source["titles"]["soft_label_rows"] == 8
    assert by_source["topics"]["soft_label_rows"] == 0
    assert by_source["topics"]["in_batch_negatives"] == 0.0, "all rows are of one class"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["masked_by_guide"] > 0
    assert metrics["soft_label_rows"] > 0


@pytest.mark.parametrize(("batches", "parts"), [("mixed", 1), ("interleaved", 2)])
def test_all_that_may_be_added_goes_with_steps_of_several_sources(
    workspace: Path, batches: str, parts: int
) -> None:
    scored = {"positive_scores": [0.9], "negative_scores": [0.1, 0.3]}
    rewrite(
        workspace,
        pa.concat_tables(
            [
                examples("titles", "retrieval", 20, negatives=2, **scored),
                examples("topics", "classification", 12, negatives=2, label="a"),
                examples("paraphrases", "sts", 9),
            ]
        ),
    )
    training = load_params(PROFILE).pretrain.training.model_dump() | TRAINING | ADDED
    training |= {"batches": batches, "sub_batches": parts}
    sources = {"titles": 1.0, "topics": 1.0, "paraphrases": 1.0}
    pretrain(params_of(workspace, pretrain={"training": training, "sources": sources}))
    folder = workspace / "artifacts" / "pretrain"
    records = list(map(json.loads, (folder / "training.jsonl").read_text().splitlines()))
    assert {record["source"] for record in records} == {batches}
    for record in records:
        assert sum(record["losses"].values()) == pytest.approx(record["loss"], rel=1e-5)
    assert max(record["soft_label_rows"] for record in records) > 0
    assert {name for record in records for name in record["losses"]} == {
        *("contrastive", "soft_labels", "triplet", "embeddings", "similarities", "cosent")
    }


def test_a_guide_of_other_contents_begins_a_new_training(
    workspace: Path, pico_folder: Path
) -> None:
    guide = workspace / "guide"
    shutil.copytree(pico_folder, guide)
    training = load_params(PROFILE).pretrain.training.model_dump() | TRAINING
    training["guide"] = ADDED["guide"] | {"checkpoint": str(guide)}
    params = params_of(workspace, pretrain={"training": training})
    keys = []
    for text in (b"{}", b"{ }"):
        (guide / "note.json").write_bytes(text)
        keys.append(contrastive._key(params, stage_of(params, {"titles": 1.0}), CPU))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"compile_blocks": True}])
def test_a_machine_that_computes_otherwise_begins_a_new_training(
    workspace: Path, other: dict[str, Any]
) -> None:
    params = params_of(workspace)
    stage = stage_of(params, {"titles": 1.0})
    key = contrastive._key(params, stage, CPU)
    assert contrastive._key(params, stage, replace(CPU, **other)) != key


def test_a_training_out_of_memory_goes_on_with_what_saves_memory(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller micro-batches, activations computed again, other processes: the mathematics stays."""
    with monkeypatch.context() as patch:
        interrupt(patch, after=5, error=torch.OutOfMemoryError("simulated"))
        with pytest.raises(torch.OutOfMemoryError):
            pretrain(params_of(workspace))
    section = load_params(PROFILE).pretrain.training.model_dump() | TRAINING
    saving = {"micro_batch_tokens": 300, "activation_checkpointing": True, "log_every_steps": 3}
    compute = {"processes": 1, "parallel": "fsdp2", "threads": 1}
    params = params_of(workspace, pretrain={"training": section | saving}, compute=compute)
    seen: list[Any] = []
    real = contrastive.train
    monkeypatch.setattr(contrastive, "train", lambda *a, **o: real(*a, **o, on_step=seen.append))
    pretrain(params)
    assert seen[0].step > 1
    assert seen[0].micro_batches > 1, "the size asked for now, not that of the checkpoint"


def test_a_teacher_that_is_no_model_is_a_message(workspace: Path) -> None:
    training = load_params(PROFILE).pretrain.training.model_dump() | TRAINING
    training["teacher"] = ADDED["teacher"] | {"checkpoint": str(workspace / "nothing")}
    with pytest.raises(StageError, match="nothing"):
        pretrain(params_of(workspace, pretrain={"training": training}))
