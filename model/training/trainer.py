"""The contrastive trainer of all stages: bit-exact across interruptions, bounded in memory.

Everything a step depends on is a function of (settings, step, weights, optimiser state): data
order, drawn negatives, learning rate and random state are derived from the seed and the step, so a
checkpoint holds tensors and a step number, and resuming replays nothing.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import load_latest
from model.encoder.encoder import Encoder
from model.encoder.precision import decoder_autocast
from model.losses.matryoshka import check_weights, matryoshka_sizes
from model.training.data.batches import BatchPlan, Step, rows_folder
from model.training.data.composition import draw_steps
from model.training.decay import decay_groups
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.micro_batches import MicroBatches
from model.training.devices.sharding import clip_gradients
from model.training.devices.team import Team
from model.training.devices.utilisation import most_tokens_per_s
from model.training.devices.wrapping import wrapped_for_training
from model.training.frozen_blocks import above_frozen_blocks
from model.training.objective.cross_batch_memory import DocumentMemory
from model.training.objective.frozen import NO_MODELS, FrozenModels, FrozenVectors
from model.training.objective.loss_report import LossReport
from model.training.objective.objective import Objective
from model.training.objective.sub_batches import SumObjective, objective_of_sub_batches
from model.training.progress import Progress
from model.training.projection_fit import fit_projection
from model.training.schedule import learning_rate_at
from model.training.settings import WITHOUT_EFFECT, TrainingSource, TrainSettings
from model.training.state import STEPS, TrainingState
from model.training.step_log import StepLog, StepRecord, read_records, summarise
from model.training.stopping import TrainingStoppedError, sigterm_flag
from model.writing import writing

STATES = "states"
"""Folder of a checkpoint for what frozen blocks made of the texts."""


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite; the message names step, source and rows."""


def train(  # noqa: PLR0913 - all that a training is made of
    encoder: Encoder,
    sources: list[TrainingSource],
    *,
    checkpoint_folder: Path,
    log_path: Path,
    settings: TrainSettings,
    frozen: FrozenModels = NO_MODELS,
    on_step: Callable[[StepRecord], None] | None = None,
) -> dict[str, Any]:
    """Train `encoder` in place; goes on from the last checkpoint in `checkpoint_folder`, if any.

    Args:
        encoder: Float32 weights on the device to be used.
        sources: Each at least one row.
        checkpoint_folder: Checkpoints and orders of rows; the caller removes it after success.
        log_path: One JSON line per step; lines after the checkpoint are cut off on resume.
        settings: The numbers.
        frozen: Guide and teacher, on the device of the encoder, if the loss asks for them.
        on_step: Called after each logged step.

    Returns:
        Metrics of the whole training, equal for an interrupted and an unbroken one.

    Raises:
        NonFiniteLossError: Training diverged; the rows stand in `checkpoint_folder`.
        TrainingStoppedError: SIGTERM arrived and the state was saved.
        ValueError: No sources, a Matryoshka size above the embedding's, a guide or teacher that is
            missing or of another size, blocks that cannot be frozen, or a checkpoint of another
            training.
    """
    if not sources:
        raise ValueError("no sources: a training needs at least one")
    if settings.memory is not None and settings.batches != "source":
        raise ValueError(f"a memory needs batches of one source each, not {settings.batches}")
    steps_of = draw_steps(sources, settings)
    team = Team(shares_weights=settings.shard_weights)
    plan = BatchPlan(sources, steps_of, settings, encoder, rows_folder(checkpoint_folder, team))
    if settings.frozen_blocks:
        if team.size > 1:
            raise ValueError(
                f"frozen_blocks is {settings.frozen_blocks}, but {team.size} processes train: a "
                "text is looked up by one; set compute.processes to 1, or frozen_blocks to 0"
            )
        encoder = above_frozen_blocks(encoder, plan, settings, checkpoint_folder / STATES)
    if load_latest(checkpoint_folder / STEPS) is None:
        fit_projection(encoder, plan, frozen, settings, team)
    own_log = log_path if team.leads else log_path.with_suffix(f".{team.rank}.jsonl")
    with wrapped_for_training(encoder, settings, team) as trained, plan.prepared_ahead():
        trainer = Trainer(trained, plan, settings, checkpoint_folder, team, frozen)
        _take_steps(trainer, own_log, settings, team, on_step)
    return summarise(read_records(own_log))


def _take_steps(
    trainer: "Trainer",
    log_path: Path,
    settings: TrainSettings,
    team: Team,
    on_step: Callable[[StepRecord], None] | None,
) -> None:
    """All steps that are left to do, each logged, with a checkpoint now and then."""
    done, log_bytes = trainer.state.resume()
    team.check_same(done, "the steps already done")
    progress = Progress(settings.max_steps, trainer.most_tokens_per_s(), done=done)
    with StepLog(log_path, log_bytes if team.leads else 0) as log, sigterm_flag() as stop:
        for step in range(done + 1, settings.max_steps + 1):
            record = trainer.step(step)
            log.append(record)
            if team.leads:
                progress.show(record)
            if on_step is not None:
                on_step(record)
            is_last = step == settings.max_steps
            is_stopped = team.any(stop.is_set())
            if is_last or is_stopped or step % settings.checkpoint_every_steps == 0:
                trainer.state.save(step, log.sync(), team)
            if is_stopped and not is_last:
                raise TrainingStoppedError(f"stopped by SIGTERM after step {step}, state saved")


class Trainer:
    """One optimiser step at a time, and its state on disk."""

    def __init__(
        self,
        encoder: Encoder,
        plan: BatchPlan,
        settings: TrainSettings,
        folder: Path,
        team: Team,
        frozen: FrozenModels = NO_MODELS,
    ) -> None:
        """Prepare the optimiser; the encoder is switched to training mode."""
        self._encoder = encoder.train()
        self._plan = plan
        self._settings = settings
        self._folder = folder
        self._team = team
        self._frozen = frozen
        self._sizes = matryoshka_sizes(encoder.embedding_size, settings.matryoshka_dims)
        check_weights(settings.options.matryoshka_weights, self._sizes)
        self._parameters = [p for p in encoder.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._parameters, settings.weight_decay),
            lr=settings.learning_rate,
            fused=True,
        )
        self._micro_batches = MicroBatches(settings.micro_batch_tokens, is_packed=encoder.is_packed)
        self._memory = DocumentMemory(settings.memory)
        self.state = TrainingState(
            encoder,
            self._optimizer,
            self._micro_batches,
            self._memory,
            folder=folder,
            fingerprint=self._fingerprint(),
        )

    def most_tokens_per_s(self) -> float:
        """As many as arithmetic alone would allow on the devices of this training."""
        return self._team.size * most_tokens_per_s(self._encoder, self._settings.precision)

    def step(self, step: int) -> StepRecord:
        """Take optimiser step `step`, counted from 1, and tell what happened.

        A step that does not fit the device's memory is taken again with micro-batches of half the
        tokens, and so are all that follow.

        Raises:
            NonFiniteLossError: Before the weights are touched.
            torch.OutOfMemoryError: Even the smallest micro-batches do not fit, or the processes
                share weights and cannot agree on smaller ones.
        """
        batch = self._plan.step(step)
        while True:
            try:
                record, embedding_MD = self._fill_gradients(step, batch)
                break
            except torch.OutOfMemoryError as error:
                if not (self._team.agrees_on(error) and self._micro_batches.can_halve):
                    raise
            self._micro_batches.halve(step)
        # outside of the loop: a step of the optimiser that breaks off must not be taken twice
        self._team.together(lambda: self._finish(batch, embedding_MD))
        return record

    def _finish(self, batch: Step, embedding_MD: Tensor) -> None:
        """Change the weights by their gradients, and remember the documents."""
        self._optimizer.step()
        slices = embedding_MD.split([len(sub_batch.items) for sub_batch in batch.sub_batches])
        for sub_batch, own in zip(batch.sub_batches, slices, strict=True):
            self._memory.add(batch.source, sub_batch, own[sub_batch.num_queries :])

    def _fill_gradients(self, step: int, batch: Step) -> tuple[StepRecord, Tensor]:
        """Gradients of all weights; what is told of the step, and embeddings of the M texts."""
        rate = self._begin(step)
        lengths = [len(item.ids) for item in batch.items]
        frozen = self._frozen.vectors(
            batch,
            self._team.texts(lengths),
            self._team,
            self._micro_batches.tokens,
            self._settings.precision,
        )
        objective = self._team.together(lambda: self._objective(step, batch, frozen))
        micro_batches = self._micro_batches.cut(lengths, self._team)
        is_cached = len(micro_batches) > 1
        loss, norm, report, embedding_MD = self._backward(
            batch, micro_batches, objective, is_cached=is_cached
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._report_divergence(step, batch, loss, norm)
        record = StepRecord(
            step=step,
            source=batch.source,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            pairs=batch.num_queries,
            report=report,
            tokens=sum(lengths),
            micro_batches=len(micro_batches),
            is_grad_cached=is_cached,
        )
        return record, embedding_MD

    def _objective(self, step: int, batch: Step, frozen: FrozenVectors) -> Objective | SumObjective:
        return objective_of_sub_batches(
            [self._memory.recall(step, batch.source, sub_batch) for sub_batch in batch.sub_batches],
            loss=self._settings.loss_at(step),
            sizes=self._sizes,
            device=self._encoder.device,
            class_negatives=self._settings.class_negatives,
            frozen=frozen,
        )

    def _begin(self, step: int) -> float:
        """Set the learning rate and the random state of the step; return the rate."""
        settings = self._settings
        rate = learning_rate_at(
            step,
            peak=settings.learning_rate,
            min_share=settings.min_learning_rate_share,
            warmup_steps=settings.warmup_steps,
            max_steps=settings.max_steps,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        seed = np.random.SeedSequence([settings.seed, 3, step]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        return rate

    def _backward(
        self,
        batch: Step,
        micro_batches: list[list[int]],
        objective: Objective | SumObjective,
        *,
        is_cached: bool,
    ) -> tuple[float, float, LossReport, Tensor]:
        """Fill the gradients; loss, norm before clipping, report, embeddings of the M texts."""
        self._optimizer.zero_grad(set_to_none=True)
        backward = cached_backward if is_cached else plain_backward

        def embed(micro_batch: list[int]) -> Tensor:
            # one without texts takes part in the passes with any text, and gives no vector
            items = [batch.items[text] for text in micro_batch or [0]]
            with decoder_autocast(self._encoder.device, self._settings.precision):
                return self._encoder.embed(items)[: len(micro_batch)]

        seen: list[Tensor] = []

        def loss_of(embedding_MD: Tensor, team: Team) -> tuple[Tensor, Tensor]:
            seen.append(embedding_MD)
            return objective.loss_and_gradient(embedding_MD, team)

        loss = backward(embed, micro_batches, len(batch.items), loss_of, self._team)
        report = objective.report(self._team)
        self._team.add_up_gradients(self._parameters)
        limit = self._settings.gradient_clip_norm
        norm = self._team.together(lambda: clip_gradients(self._parameters, limit, self._team))
        return loss.item(), norm.item(), report, seen[0]

    def _report_divergence(self, step: int, batch: Step, loss: float, norm: float) -> None:
        file = self._folder / "diverged.json"
        rows = {"step": step, "source": batch.source, "ids": batch.row_ids}
        if self._team.leads:
            text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
            with writing(file):
                file.write_text(text, encoding="utf-8")
        raise NonFiniteLossError(
            f"step {step}: loss {loss}, gradient norm {norm} on a batch of {batch.source!r}, "
            f"first rows {', '.join(batch.row_ids[:3])} (all in {file}): lower the learning rate, "
            "raise the temperature or use precision fp32; the weights are those of the step before"
        )

    def _fingerprint(self) -> dict[str, Any]:
        sources = [
            [held.source.name, held.source.table.num_rows, held.source.weight]
            for held in self._plan.sources
        ]
        values = asdict(self._settings)
        settings = {name: values[name] for name in values if name not in WITHOUT_EFFECT}
        fingerprint = {"settings": settings, "sources": sources}
        return json.loads(json.dumps(fingerprint))
