"""Checkpoints of a training run: safetensors for tensors, JSON for the rest, no pickle.

A checkpoint is a folder `step-00000050`. It gets its name by a rename after all files are on the
disk, so a process killed at any moment leaves the last complete one to continue from. state.json is
written last and names the others with their sizes.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.writing import writing

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
PARTIAL = ".partial-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk; its tensors are read when they are asked for."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """All of what was saved, on the CPU."""
        return load_file(self.path / TENSORS_FILE)


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
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with new_checkpoint(folder, step=step, state=state, keep=keep) as partial:
        _write_tensors(partial / TENSORS_FILE, plain)


@contextmanager
def new_checkpoint(
    folder: Path, *, step: int, state: Mapping[str, Any], keep: int
) -> Iterator[Path]:
    """A folder for the body to write tensors into; a checkpoint of `folder` when it has.

    The arguments are those of `save_checkpoint`.

    Raises:
        OSError: The disk is full; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(stale)
    partial = partial_folder(folder, step)
    partial.mkdir()
    try:
        yield partial
        _write_state(partial, step, state)
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


def partial_folder(folder: Path, step: int) -> Path:
    """Where `new_checkpoint` has the tensors of a step written."""
    return folder / f"{PARTIAL}{step:08d}"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with writing(path):
        save_file(dict(tensors), path)
        _flush(path)


def _write_state(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    content = {"step": step, "state": state, "files": _sizes(folder)}
    with writing(folder / STATE_FILE):
        text = json.dumps(content, ensure_ascii=False)
        (folder / STATE_FILE).write_text(text, encoding="utf-8")
        _flush(folder / STATE_FILE)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all there; None when there is none."""
    for path in _newest_first(folder):
        try:
            content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            logger.warning("checkpoint %s is damaged and left aside: %s", path.name, error)
            continue
        if _sizes(path) != content["files"]:
            logger.warning("checkpoint %s is damaged and left aside: a file is cut", path.name)
            continue
        return Checkpoint(path=path, step=content["step"], state=content["state"])
    return None


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of tensors."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}


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


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; other names are ignored, settings stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            parameter, _, name = rest.partition(".")
            state.setdefault(int(parameter), {})[name] = value
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
