"""What the steps of a training change, and its checkpoints on the disk."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import load_latest, optimizer_tensors, restore_optimizer, save_checkpoint
from model.encoder.encoder import Encoder
from model.training.devices.micro_batches import MicroBatches
from model.training.devices.sharded_checkpoint import load_tensors, save_shards
from model.training.devices.team import Team
from model.training.objective.cross_batch_memory import DocumentMemory

STEPS = "steps"
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
        """Nothing is read yet.

        Args:
            encoder: As it is trained.
            optimizer: Over its trained parameters.
            micro_batches: Their size is halved when memory runs out.
            memory: Of earlier batches.
            folder: Checkpoints lie below it.
            fingerprint: Tells one training from another.
        """
        self._encoder = encoder
        self._optimizer = optimizer
        self._micro_batches = micro_batches
        self._memory = memory
        self._folder = folder
        self._fingerprint = fingerprint

    def save(self, step: int, log_bytes: int, team: Team) -> None:
        """Write a checkpoint of the state after `step`, the same on every process."""
        weights = {WEIGHTS + name: tensor for name, tensor in self._trained_weights().items()}
        moments = self._renamed(optimizer_tensors(self._optimizer), self._names())
        tensors = weights | moments | self._memory.tensors()
        state = {
            "log_bytes": log_bytes,
            "asked_tokens": self._micro_batches.asked_tokens,
            "micro_batch_tokens": self._micro_batches.tokens,
            "memory": self._memory.sources(),
            "training": self._fingerprint,
        }
        steps = self._folder / STEPS
        if team.shares_weights:
            save_shards(
                steps, step=step, tensors=tensors, state=state, keep=CHECKPOINTS_KEPT, team=team
            )
        elif team.leads:
            save_checkpoint(steps, step=step, tensors=tensors, state=state, keep=CHECKPOINTS_KEPT)
        team.wait()

    def resume(self) -> tuple[int, int]:
        """Load the last checkpoint; steps done and bytes of the log then, (0, 0) without one.

        Raises:
            ValueError: The checkpoint belongs to other settings or other sources.
        """
        checkpoint = load_latest(self._folder / STEPS)
        if checkpoint is None:
            return 0, 0
        if checkpoint.state["training"] != self._fingerprint:
            raise ValueError(
                f"{self._folder} holds a checkpoint of other settings or sources: "
                "delete the folder to train from the start"
            )
        own = self._encoder.state_dict()
        tensors = load_tensors(checkpoint.path, lambda key: own.get(_parameter_of(key)))
        weights = {
            key.removeprefix(WEIGHTS): tensor
            for key, tensor in tensors.items()
            if key.startswith(WEIGHTS)
        }
        self._encoder.load_state_dict(own | weights)
        numbers = {name: number for number, name in self._names().items()}
        restore_optimizer(self._optimizer, self._renamed(tensors, numbers))
        self._memory.restore(checkpoint.state["memory"], tensors, self._encoder.device)
        if checkpoint.state["asked_tokens"] == self._micro_batches.asked_tokens:
            # halved when memory ran out; who asks for another size has an answer to that
            self._micro_batches.tokens = int(checkpoint.state["micro_batch_tokens"])
        logger.info("resumed after step %d", checkpoint.step)
        return checkpoint.step, int(checkpoint.state["log_bytes"])

    def _names(self) -> dict[str, str]:
        """Number of each parameter in the optimiser to its name.

        Sharded and whole parameters have groups of their own, so numbers are other ones with other
        processes; names stay.
        """
        name_of = {id(p): name for name, p in self._encoder.named_parameters()}
        ordered = [p for group in self._optimizer.param_groups for p in group["params"]]
        return {str(number): name_of[id(p)] for number, p in enumerate(ordered)}

    @staticmethod
    def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
        """The moments among the tensors, the parameter in each key under its other name."""
        renamed: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                parameter, _, moment = rest.rpartition(".")
                renamed[f"optimizer.{names[parameter]}.{moment}"] = tensor
        return renamed

    def _trained_weights(self) -> dict[str, Tensor]:
        """All weights but the frozen ones, which the training began with."""
        frozen = {name for name, p in self._encoder.named_parameters() if not p.requires_grad}
        weights = self._encoder.state_dict()
        return {name: tensor for name, tensor in weights.items() if name not in frozen}


def _parameter_of(key: str) -> str:
    """Name of the weight that a saved tensor is or is a moment of; of no weight for a memory."""
    kind, _, name = key.partition(".")
    return name.rpartition(".")[0] if kind == "optimizer" else name
