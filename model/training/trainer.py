"""The contrastive trainer of all stages: bit-exact across interruptions, bounded in memory.

Everything a step depends on is a function of (settings, step, weights, optimiser state): data
order, drawn negatives, learning rate and random state are derived from the seed and the step, so a
checkpoint holds tensors and a step number, and resuming replays nothing.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import (
    load_latest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from model.encoder import Encoder
from model.losses.matryoshka import check_weights, matryoshka_sizes
from model.precision import decoder_autocast
from model.tokenization import token_budget_batches
from model.training.batches import BatchPlan, Step, rows_folder
from model.training.composition import draw_steps
from model.training.frozen import NO_MODELS, FrozenModels
from model.training.grad_cache import cached_backward, plain_backward
from model.training.objective import Objective
from model.training.parts import SumObjective, objective_of_parts
from model.training.progress import Progress
from model.training.schedule import learning_rate_at
from model.training.settings import TrainingSource, TrainSettings
from model.training.step_log import StepLog, StepRecord, read_records, summarise
from model.training.stopping import TrainingStoppedError, sigterm_flag
from model.training.team import Team
from model.writing import writing

WEIGHTS = "weights."
CHECKPOINTS_KEPT = 2
FEWEST_TOKENS = 256
"""Micro-batches are not halved below this."""

logger = logging.getLogger(__name__)


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
            missing or of another size, or a checkpoint of another training.
    """
    if not sources:
        raise ValueError("no sources: a training needs at least one")
    steps_of = draw_steps(sources, settings)
    team = Team()
    plan = BatchPlan(sources, steps_of, settings, encoder, rows_folder(checkpoint_folder, team))
    trainer = Trainer(encoder, plan, settings, checkpoint_folder, team, frozen)
    done, log_bytes = trainer.resume()
    team.check_same(done, "the steps already done")
    progress = Progress(settings.max_steps)
    own_log = log_path if team.leads else log_path.with_suffix(f".{team.rank}.jsonl")
    with (
        StepLog(own_log, log_bytes if team.leads else 0) as log,
        sigterm_flag() as stop,
        plan.prepared_ahead(),
    ):
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
                trainer.save(step, log.sync())
            if is_stopped and not is_last:
                raise TrainingStoppedError(f"stopped by SIGTERM after step {step}, state saved")
    encoder.eval()
    return summarise(read_records(own_log))


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
        self._micro_batch_tokens = settings.micro_batch_tokens
        self._sizes = matryoshka_sizes(encoder.embedding_size, settings.matryoshka_dims)
        check_weights(settings.options.matryoshka_weights, self._sizes)
        self._parameters = [p for p in encoder.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            _decay_groups(self._parameters, settings.weight_decay),
            lr=settings.learning_rate,
            fused=True,
        )

    def step(self, step: int) -> StepRecord:
        """Take optimiser step `step`, counted from 1, and tell what happened.

        A step that does not fit the device's memory is taken again with micro-batches of half the
        tokens, and so are all that follow.

        Raises:
            NonFiniteLossError: Before the weights are touched.
            torch.OutOfMemoryError: Even micro-batches of `FEWEST_TOKENS` do not fit, or several
                processes would have to agree on smaller ones.
        """
        while True:
            try:
                return self._step(step)
            except torch.OutOfMemoryError:
                if self._team.size > 1 or self._micro_batch_tokens < 2 * FEWEST_TOKENS:
                    raise
                self._micro_batch_tokens //= 2
                logger.warning(
                    "step %d: out of memory; going on with micro-batches of %d tokens, set "
                    "micro_batch_tokens to that to save the attempt",
                    *(step, self._micro_batch_tokens),
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _step(self, step: int) -> StepRecord:
        rate = self._begin(step)
        batch = self._plan.step(step)
        lengths = [len(item.ids) for item in batch.items]
        own = self._team.texts(lengths)
        objective = objective_of_parts(
            batch.parts,
            loss=self._settings.loss_at(step),
            sizes=self._sizes,
            device=self._encoder.device,
            class_negatives=self._settings.class_negatives,
            frozen=self._frozen.vectors(
                batch, own, self._team, self._micro_batch_tokens, self._settings.precision
            ),
        )
        parts = [
            [own[place] for place in part]
            for part in token_budget_batches(
                [lengths[text] for text in own],
                self._micro_batch_tokens,
                is_packed=self._encoder.is_packed,
            )
        ]
        is_cached = len(parts) > 1
        loss, norm = self._backward(batch, parts, objective, is_cached=is_cached)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._report_divergence(step, batch, loss, norm)
        self._optimizer.step()
        return StepRecord(
            step=step,
            source=batch.source,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            pairs=batch.num_queries,
            in_batch_negatives=objective.in_batch_negatives,
            hard_negatives=objective.hard_negatives,
            masked_share=objective.masked_share,
            masked_by_score=objective.masked_by_score,
            masked_by_guide=objective.masked_by_guide,
            soft_label_rows=objective.soft_label_rows,
            losses=objective.losses,
            tokens=sum(lengths),
            micro_batches=len(parts),
            is_grad_cached=is_cached,
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
        parts: list[list[int]],
        objective: Objective | SumObjective,
        *,
        is_cached: bool,
    ) -> tuple[float, float]:
        self._optimizer.zero_grad(set_to_none=True)
        backward = cached_backward if is_cached else plain_backward

        def embed(part: list[int]) -> Tensor:
            items = [batch.items[text] for text in part]
            with decoder_autocast(self._encoder.device, self._settings.precision):
                return self._encoder.embed(items)

        loss = backward(embed, parts, len(batch.items), objective.shares, self._team)
        self._team.add_up_gradients(self._parameters)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.gradient_clip_norm)
        return loss.item(), norm.item()

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

    def save(self, step: int, log_bytes: int) -> None:
        """Write a checkpoint of the state after `step`, the same on every process."""
        if not self._team.leads:
            self._team.wait()
            return
        weights = {WEIGHTS + name: tensor for name, tensor in self._encoder.state_dict().items()}
        save_checkpoint(
            self._folder / "steps",
            step=step,
            tensors=weights | optimizer_tensors(self._optimizer),
            state={
                "log_bytes": log_bytes,
                "micro_batch_tokens": self._micro_batch_tokens,
                "training": self._fingerprint(),
            },
            keep=CHECKPOINTS_KEPT,
        )
        self._team.wait()

    def resume(self) -> tuple[int, int]:
        """Load the last checkpoint; steps done and bytes of the log then, (0, 0) without one.

        Raises:
            ValueError: The checkpoint belongs to other settings or other sources.
        """
        checkpoint = load_latest(self._folder / "steps")
        if checkpoint is None:
            return 0, 0
        if checkpoint.state["training"] != self._fingerprint():
            raise ValueError(
                f"{self._folder} holds a checkpoint of other settings or sources: "
                "delete the folder to train from the start"
            )
        weights = {
            name.removeprefix(WEIGHTS): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(WEIGHTS)
        }
        self._encoder.load_state_dict(weights)
        restore_optimizer(self._optimizer, checkpoint.tensors)
        self._micro_batch_tokens = int(checkpoint.state["micro_batch_tokens"])
        logger.info("resumed after step %d of %d", checkpoint.step, self._settings.max_steps)
        return checkpoint.step, int(checkpoint.state["log_bytes"])

    def _fingerprint(self) -> dict[str, Any]:
        sources = [
            [held.source.name, held.source.table.num_rows, held.source.weight]
            for held in self._plan.sources
        ]
        fingerprint = {"settings": asdict(self._settings), "sources": sources}
        return json.loads(json.dumps(fingerprint))


def _decay_groups(
    parameters: list[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Decay for matrices, none for norms, biases and other vectors."""
    matrices = [p for p in parameters if p.ndim >= 2]  # noqa: PLR2004 - two axes make a matrix
    vectors = [p for p in parameters if p.ndim < 2]  # noqa: PLR2004
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
