"""What the steps of a training change, and its checkpoints on the disk."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import load_latest, optimizer_tensors, restore_optimizer, save_checkpoint
from model.encoder.encoder import Encoder
from model.training.devices.micro_batches import MicroBatches
from model.training.devices.sharding import like, whole_tensors
from model.training.devices.team import Team
from model.training.objective.cross_batch_memory import DocumentMemory

WEIGHTS = "weights."
CHECKPOINTS_KEPT = 2

logger = logging.getLogger(__name__)


class TrainingState:
    """Weights, optimiser, micro-batches and memory; saved and restored together, exactly."""

    def __init__(
        self,
        encoder: Encoder,
        optimizer: torch.optim.Optimizer,
        micro_batches: MicroBatches,
        memory: DocumentMemory,
        *,
        folder: Path,
        fingerprint: dict[str, Any],
    ) -> None:
        """Checkpoints lie below `folder`; `fingerprint` tells one training from another."""
        self._encoder = encoder
        self._optimizer = optimizer
        self._micro_batches = micro_batches
        self._memory = memory
        self._folder = folder
        self._fingerprint = fingerprint

    def save(self, step: int, log_bytes: int, team: Team) -> None:
        """Write a checkpoint of the state after `step`, the same on every process."""
        weights = {WEIGHTS + name: tensor for name, tensor in self._trained_weights().items()}
        whole = whole_tensors(weights | optimizer_tensors(self._optimizer), team)
        if team.leads:
            save_checkpoint(
                self._folder / "steps",
                step=step,
                tensors=whole | self._memory.tensors(),
                state={
                    "log_bytes": log_bytes,
                    "micro_batch_tokens": self._micro_batches.tokens,
                    "memory": self._memory.sources(),
                    "training": self._fingerprint,
                },
                keep=CHECKPOINTS_KEPT,
            )
        team.wait()

    def resume(self) -> tuple[int, int]:
        """Load the last checkpoint; steps done and bytes of the log then, (0, 0) without one.

        Raises:
            ValueError: The checkpoint belongs to other settings or other sources.
        """
        checkpoint = load_latest(self._folder / "steps")
        if checkpoint is None:
            return 0, 0
        if checkpoint.state["training"] != self._fingerprint:
            raise ValueError(
                f"{self._folder} holds a checkpoint of other settings or sources: "
                "delete the folder to train from the start"
            )
        weights = {
            name.removeprefix(WEIGHTS): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(WEIGHTS)
        }
        own = self._encoder.state_dict()
        own |= {name: like(tensor, own[name]) for name, tensor in weights.items()}
        self._encoder.load_state_dict(own)
        restore_optimizer(self._optimizer, checkpoint.tensors, like)
        self._memory.restore(checkpoint.state["memory"], checkpoint.tensors, self._encoder.device)
        self._micro_batches.tokens = int(checkpoint.state["micro_batch_tokens"])
        logger.info("resumed after step %d", checkpoint.step)
        return checkpoint.step, int(checkpoint.state["log_bytes"])

    def _trained_weights(self) -> dict[str, Tensor]:
        """All weights but the frozen ones, which the training began with."""
        frozen = {name for name, p in self._encoder.named_parameters() if not p.requires_grad}
        weights = self._encoder.state_dict()
        return {name: tensor for name, tensor in weights.items() if name not in frozen}
