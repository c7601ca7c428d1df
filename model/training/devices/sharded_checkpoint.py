"""Checkpoints of sharded trainings: a process writes the share that it holds and reads its own.

None gathers what all hold together. The files are safetensors that say which part of a tensor they
hold; torch.distributed.checkpoint writes them, and finds for each process what it needs, also where
more or fewer of them go on.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from model.checkpoint import new_checkpoint, partial_folder
from model.training.devices.team import Team
from model.writing import writing


def save_shards(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    team: Team,
) -> None:
    """Write one checkpoint below `folder`, as `save_checkpoint` does; called by every process.

    Args:
        folder: Seen by all processes.
        step: Steps done.
        tensors: Sharded or whole; a whole one is the same everywhere and is written once.
        state: Everything else, as JSON.
        keep: Checkpoints that stay.
        team: The processes.

    Raises:
        OSError: A disk is full; earlier checkpoints are untouched.
    """
    with contextlib.ExitStack() as stack:
        if team.leads:
            stack.enter_context(new_checkpoint(folder, step=step, state=state, keep=keep))
        team.wait()
        partial = partial_folder(folder, step)
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        with writing(partial), _plain_errors():
            save(dict(tensors), storage_writer=writer)
    team.wait()


def load_tensors(path: Path, held_as: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """What a checkpoint holds, read part by part; processes need not wait for each other.

    Args:
        path: A complete checkpoint, of shards or of whole tensors.
        held_as: The tensor that the one of this name belongs to, if any.

    Returns:
        Tensors by name. One of the shape of a sharded tensor is sharded like it, on its device; any
        other is whole and on the CPU.
    """
    reader = HuggingFaceStorageReader(str(path))
    tensors: dict[str, Tensor] = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(saved, TensorStorageMetadata):
            raise TypeError(f"{name} in {path} is no tensor")
        model = held_as(name)
        if isinstance(model, DTensor) and model.shape == saved.size:
            tensors[name] = torch.empty_like(model, dtype=saved.properties.dtype)
        else:
            tensors[name] = torch.empty(saved.size, dtype=saved.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*load in a single process")
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what stopped a process in place of torch's collection of what stopped each."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
