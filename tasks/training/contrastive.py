"""What the contrastive stages share: from params.yaml and tables to a trained model folder."""

import logging
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.encoder.encoder import Encoder
from model.losses.presets import PRESETS
from model.losses.terms import EXPLICIT_TERMS
from model.training.data.batches import prepare_orders
from model.training.devices.auto_size import with_fitting_micro_batches
from model.training.devices.team import Team
from model.training.settings import WITHOUT_EFFECT, TrainingSource, TrainSettings
from model.training.step_log import read_records, write_curves
from model.training.stopping import TrainingStoppedError
from model.training.trainer import train
from tasks.contract.prompts import SYMMETRIC_TASKS, document_prompt, query_prompt
from tasks.contract.stage import StageError, atomic_folder, write_json
from tasks.machine.compute import Machine, use_compute
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS, CHECKPOINTS, CORPORA, MICRO_BATCHES
from tasks.params.training import Prompts, Training
from tasks.training.checkpoint_key import checkpoint_key
from tasks.training.corpus import Tables, open_corpus
from tasks.training.frozen import frozen_folders, load_frozen
from tasks.training.settings import train_settings
from tasks.training.team import joined_team

INGESTED = ARTIFACTS / "ingest" / "examples"
SYNTHESIZED = ARTIFACTS / "synthesize" / "examples"
MINED = ARTIFACTS / "mine" / "examples"
SYNTHETIC = "synthetic"
FEWEST_ROWS = 2
TERMINATED = 128 + 15

NO_TEACHER = (
    "nobody judged its pairs, so a teacher alone has something to say of them, and there is none: "
    "set training.teacher, or remove the source from the stage"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContrastiveStage:
    """One training as the flow sees it."""

    name: str
    """Name of the stage, as in the timings: pretrain, multitask@balanced."""
    training: Training
    weights: dict[str, float]
    """Source to a factor on its sampling weight."""
    base: Path
    """Model folder to start from."""
    output: Path
    """Folder of the outputs, replaced whole."""
    is_mined: bool
    """Whether rows of artifacts/mine replace the rows they were mined for."""


def run_training(params: Params, stage: ContrastiveStage) -> None:
    """Train `stage` and write its model, metrics.json, curves.csv and training.jsonl.

    Checkpoints lie outside the outputs, which DVC deletes before a stage: a training that was
    killed goes on where it was, to the same bytes. SIGTERM exits with code 143.

    Raises:
        StageError: A source cannot be trained on, the base model is missing, or training diverged.
    """
    machine = use_compute(params.compute, gpus=params.compute.processes)
    with joined_team(params.compute, machine.device) as (team, device):
        _train(params, stage, team, replace(machine, device=device))


def _train(params: Params, stage: ContrastiveStage, team: Team, machine: Machine) -> None:
    if team.leads:
        _open_corpus(stage)  # written once, by one process
    team.wait()
    sources = load_sources(params.prompts, stage)
    settings = train_settings(
        stage.training,
        machine.precision,
        shard_weights=params.compute.parallel == "fsdp2" and team.size > 1,
        compile_blocks=machine.compile_blocks,
    )
    if settings.batches != "mixed":
        warn_about_small_sources(sources, settings.sub_batch_size)
    warn_about_idle_rows(sources, stage.training)
    work = CHECKPOINTS / stage.name / _key(params, stage, machine)
    log = work / "training.jsonl"
    try:
        # before the weights are there: the device waits for nothing that grows with the corpus
        prepare_orders(sources, settings, work, team)
        encoder = Encoder.load(
            stage.base,
            device=machine.device,
            attn_implementation=params.backbone.attn_implementation,
        ).float()
        settings = _sized(encoder, stage.training, settings, team)
        metrics = train(
            encoder,
            sources,
            checkpoint_folder=work,
            log_path=log,
            settings=settings,
            frozen=load_frozen(params, stage.training, machine.device),
        )
    except TrainingStoppedError as stopped:
        logger.warning("%s; run the stage again to go on", stopped)
        sys.exit(TERMINATED)
    except ValueError as error:
        raise StageError(str(error)) from error
    if not team.leads:
        sys.exit(0)
    with atomic_folder(stage.output) as folder:
        _save(encoder, folder / "model", params.backbone.attn_implementation)
        shutil.copyfile(log, folder / "training.jsonl")
        write_curves(read_records(log), folder / "curves.csv", stage.training.log_every_steps)
        write_json(folder / "metrics.json", metrics | _facts(encoder, sources, machine))
    # checkpoints of other settings were abandoned when this training was begun
    shutil.rmtree(CHECKPOINTS / stage.name)


def _save(encoder: Encoder, folder: Path, attn_implementation: str) -> None:
    try:
        encoder.save_proven(folder, attn_implementation=attn_implementation)
    except ValueError as error:
        raise StageError(
            f"the training is finished, but its model is not sound: {error}"
        ) from error


def load_sources(prompts: Prompts, stage: ContrastiveStage) -> list[TrainingSource]:
    """The sources of the stage in the order of params.yaml, each with its rows and prompts.

    A source that holds rows of several tasks (as synthetic examples may) becomes one source per
    task, `name-task`, with the same weight.

    Raises:
        StageError: A source has fewer than two rows, or rows its task cannot learn from.
    """
    tables, present = _open_corpus(stage)
    sources: list[TrainingSource] = []
    for name, weight in stage.weights.items():
        by_task = tables.get(name, {})
        rows = sum(table.num_rows for table in by_task.values())
        if rows < FEWEST_ROWS:
            raise StageError(
                f"{stage.name}: source {name!r} has {rows} training rows, at least "
                f"{FEWEST_ROWS} are needed; sources with rows: {', '.join(present) or 'none'}. "
                "Correct the name, remove it from the sources of the stage, or see "
                "artifacts/ingest/metrics.json for why its rows were rejected"
            )
        for task, table in by_task.items():
            title = name if len(by_task) == 1 else f"{name}-{task}"
            source = TrainingSource(
                name=title,
                task=task,
                prompt=query_prompt(prompts, task),
                document_prompt=document_prompt(prompts, task),
                table=table,
                weight=weight,
                is_symmetric=task in SYMMETRIC_TASKS,
            )
            fault = _fault(source, stage.training)
            if fault is not None:
                raise StageError(f"{stage.name}: source {title!r} of task {task}: {fault}")
            sources.append(source)
    return sources


def _sized(
    encoder: Encoder, training: Training, settings: TrainSettings, team: Team
) -> TrainSettings:
    """The settings with micro-batches of `auto` sized by the device, others as they are."""
    if training.micro_batch_tokens != "auto":
        return settings
    return with_fitting_micro_batches(encoder, settings, MICRO_BATCHES, team)


def warn_about_small_sources(sources: list[TrainingSource], batch_size: int) -> None:
    """Log each source that cannot fill a batch: its batches are smaller, with fewer negatives."""
    for source in sources:
        rows = source.table.num_rows
        if rows < batch_size:
            logger.warning(
                "source %s has %d rows, below batch_size %d: its batches hold %d pairs",
                source.name,
                rows,
                batch_size,
                rows,
            )


def warn_about_idle_rows(sources: list[TrainingSource], training: Training) -> None:
    """Log each source with rows that teach nothing: they have no negative and get none in-batch."""
    for source in sources:
        idle = int((_lengths(source.table["negatives"]) == 0).sum())
        if idle and _needs_own_negatives(source, training):
            logger.warning(
                "source %s: %d of %d rows have no negative of their own and get none from the "
                "batch: they add 0 to the loss",
                source.name,
                idle,
                source.table.num_rows,
            )


def _open_corpus(stage: ContrastiveStage) -> tuple[Tables, list[str]]:
    """The tables of the sources of the stage, and the names of all sources that have rows."""
    # written queries are among the files of every stage, so that all share them
    asks = SYNTHETIC in stage.weights or SYNTHESIZED.exists()
    examples = [INGESTED, *([SYNTHESIZED] if asks else [])]
    return open_corpus(CORPORA, stage.weights, examples, MINED if stage.is_mined else None)


def _fault(source: TrainingSource, training: Training) -> str | None:
    """Why the source cannot be trained on, None if it can."""
    table = source.table
    without = int((_lengths(table["positives"]) == 0).sum())
    if without:
        return f"{without} of {table.num_rows} rows have no positive: ingest must drop them"
    if not source.is_judged:
        return None if training.teacher is not None else NO_TEACHER
    if source.is_graded:
        return _score_fault(table["score"])
    needs_labels = not source.is_in_batch and training.class_negatives == "batch"
    fault = _label_fault(table["label"]) if needs_labels else None
    if fault is None and _needs_own_negatives(source, training):
        fault = _negatives_fault(source, training)
    return fault


def _score_fault(scores: pa.ChunkedArray) -> str | None:
    if not scores.null_count:
        return None
    return (
        f"{scores.null_count} of {len(scores)} rows have no score: "
        "map the field `score` of the source, or give it the task nli"
    )


def _label_fault(labels: pa.ChunkedArray) -> str | None:
    """A row's labels must tell which other rows are its negatives."""
    if not labels.null_count:
        return None
    return (
        f"{labels.null_count} of {len(labels)} rows have no label, so nothing tells which rows are "
        "negatives of each other: set class_negatives to own, or remove the source"
    )


def _needs_own_negatives(source: TrainingSource, training: Training) -> bool:
    """Whether a row learns from its own hard negatives alone."""
    if source.is_graded or training.teacher is not None:
        return False
    if not source.is_in_batch and training.class_negatives == "own":
        return True
    softmaxes = training.softmaxes or PRESETS[training.loss].loss.softmaxes
    return {term for softmax in softmaxes for term in softmax} <= set(EXPLICIT_TERMS)


def _negatives_fault(source: TrainingSource, training: Training) -> str | None:
    """Rows that have nothing but their own hard negatives must have some."""
    if training.hard_negatives == 0:
        return (
            "hard_negatives is 0, and there are no in-batch negatives here "
            f"(loss {training.loss}): nothing would be learnt; raise hard_negatives, "
            "or remove the source from the stage"
        )
    if not _lengths(source.table["negatives"]).any():
        return f"no row has a negative, and there are no in-batch ones: {_remedy(source)}"
    return None


def _remedy(source: TrainingSource) -> str:
    if source.is_in_batch:
        return (
            "name it under mine.sources, map the field `negative`, "
            "or choose a loss with in-batch negatives"
        )
    return "it needs two classes at least and ingest.class_negatives above 0"


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    parts = [chunk.value_lengths().fill_null(0) for chunk in lists.chunks]
    return np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])


def _key(params: Params, stage: ContrastiveStage, machine: Machine) -> str:
    settings = {
        "stage": stage.name,
        "training": stage.training.model_dump(exclude=set(WITHOUT_EFFECT)),
        "weights": stage.weights,
        "prompts": params.prompts.model_dump(),
        # not how many threads or processes: a training goes on with more or fewer
        "machine": [machine.device.type, machine.precision, machine.compile_blocks],
        "attention": params.backbone.attn_implementation,
    }
    inputs = [stage.base, INGESTED]
    inputs += [SYNTHESIZED] if SYNTHETIC in stage.weights else []
    inputs += [MINED] if stage.is_mined else []
    inputs += frozen_folders(stage.training)
    return checkpoint_key(settings, inputs)


def _facts(encoder: Encoder, sources: list[TrainingSource], machine: Machine) -> dict[str, Any]:
    return {
        "precision": machine.precision,
        "rows": {source.name: source.table.num_rows for source in sources},
        "embedding_size": encoder.embedding_size,
        "parameters": sum(weight.numel() for weight in encoder.parameters()),
    }
