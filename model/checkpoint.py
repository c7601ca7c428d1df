"""Checkpoints of a training run: safetensors for tensors, JSON for the rest, no pickle.

A checkpoint is a folder `step-00000050`. It gets its name by a rename after both files are on the
disk, so a process killed at any moment leaves the last complete one to continue from.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.writing import writing

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
PARTIAL = ".partial-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` was given."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
) -> None:
    """Write one checkpoint below `folder` and drop all but the newest `keep`.

    Args:
        folder: Holds the checkpoints of one run and nothing else.
        step: Steps done; a checkpoint of the same step is replaced.
        tensors: Weights, optimizer moments, states of random generators.
        state: Everything else, as JSON; floats come back bit by bit.
        keep: Checkpoints that stay.

    Raises:
        OSError: The disk is full; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(stale)
    partial = folder / f"{PARTIAL}{os.getpid()}"
    partial.mkdir()
    try:
        _write(partial, step, tensors, state)
    except OSError:
        # on a full disk its own beginning would be in the way of the next attempt
        shutil.rmtree(partial, ignore_errors=True)
        raise
    target = folder / f"step-{step:08d}"
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    _flush(folder)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def _write(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writing(folder / TENSORS_FILE):
        save_file(plain, folder / TENSORS_FILE)
        _flush(folder / TENSORS_FILE)
    with writing(folder / STATE_FILE):
        text = json.dumps({"step": step, "state": state}, ensure_ascii=False)
        (folder / STATE_FILE).write_text(text, encoding="utf-8")
        _flush(folder / STATE_FILE)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read whole, on the CPU; None when there is none."""
    for path in _newest_first(folder):
        try:
            content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            tensors = load_file(path / TENSORS_FILE)
        except (FileNotFoundError, json.JSONDecodeError, SafetensorError) as error:
            logger.warning("checkpoint %s is damaged and left aside: %s", path.name, error)
            continue
        return Checkpoint(step=content["step"], tensors=tensors, state=content["state"])
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer as `optimizer.<parameter>.<name>`, without its settings.

    Raises:
        ValueError: A state value is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    for parameter, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"optimizer state {name!r} is {type(value).__name__}, no tensor")  # noqa: TRY004 - an unfit optimizer is a bad value
            tensors[f"optimizer.{parameter}.{name}"] = value
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    as_held: Callable[[Tensor, Tensor], Tensor] = lambda value, _: value,
) -> None:
    """Put back what `optimizer_tensors` gave; other names are ignored, settings stay.

    Args:
        optimizer: Over the parameters that the values are of.
        tensors: What was saved.
        as_held: A value in the form in which that parameter is held.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            parameter, _, name = rest.partition(".")
            number = int(parameter)
            state.setdefault(number, {})[name] = as_held(value, parameters[number])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
