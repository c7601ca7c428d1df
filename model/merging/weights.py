"""Model folders as named tensors: memory-mapped for reading, streamed tensor by tensor to disk.

A tensor is named by its subfolder and its key, such as `layers.0.mlp.up_proj.weight` or
`1_LatentPooling/latents`; in which shard of a folder it lies does not matter.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.writing import writing

TensorSource = Callable[[str], Tensor]
"""Gives the tensor of a name; called once per name, so that one tensor exists at a time."""


class SavedWeights:
    """The tensors of one model folder.

    Attributes:
        folder: Where they lie.
        names: All of them, sorted.
    """

    def __init__(self, folder: Path) -> None:
        """Open every safetensors file below `folder`; nothing is read yet.

        Raises:
            ValueError: There is none, or one is broken, or two hold the same name.
        """
        self.folder = folder
        self._places = {}
        for path in _weight_files(folder):
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is no safetensors file ({error})") from error
            for key in file.keys():  # noqa: SIM118 - no mapping, only named like one
                name = (path.parent.relative_to(folder) / key).as_posix()
                if name in self._places:
                    raise ValueError(f"{folder} holds {name} in two files")
                self._places[name] = (file, key)
        if not self._places:
            raise ValueError(f"{folder} holds no safetensors file: it is no model folder")
        self.names = sorted(self._places)

    def tensor(self, name: str) -> Tensor:
        """The tensor; its pages are read when touched and need not be copied."""
        file, key = self._places[name]
        return file.get_tensor(key)

    def wide(self, name: str) -> Tensor:
        """The tensor in float32, or in float64 if it is so stored: merges are computed in it."""
        tensor = self.tensor(name)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def shape(self, name: str) -> list[int]:
        """Its shape, without reading it."""
        file, key = self._places[name]
        return file.get_slice(key).get_shape()


def require_alike(checkpoints: Sequence[SavedWeights]) -> None:
    """Check that all hold the same names with the same shapes, and the same integer tensors.

    Raises:
        ValueError: They do not; the message names the first tensor and the folders.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for name in sorted(set(first.names) ^ set(other.names)):
            there, absent = (first, other) if name in first.names else (other, first)
            raise ValueError(
                f"tensor {name} is in {there.folder} but not in {absent.folder}: only models of "
                "one architecture, saved in one way, can be merged"
            )
        for name in first.names:
            if first.shape(name) != other.shape(name):
                raise ValueError(
                    f"tensor {name} has shape {first.shape(name)} in {first.folder} but "
                    f"{other.shape(name)} in {other.folder}: only models of one size can be merged"
                )
            mine, theirs = first.tensor(name), other.tensor(name)
            if not mine.is_floating_point() and not torch.equal(mine, theirs):
                raise ValueError(
                    f"tensor {name}, which is no floating-point one, differs between "
                    f"{first.folder} and {other.folder}: it cannot be merged"
                )


def write_merged(template: Path, target: Path, merged: TensorSource) -> None:
    """Write a copy of the folder `template` whose floating-point tensors are the merged ones.

    Headers are those of the template, so equal tensors give equal bytes; each value is cast to
    the type the template has for it. Memory: one tensor.

    Args:
        template: A model folder.
        target: Must not exist.
        merged: Gives each tensor; integer tensors are not asked for.
    """
    for path in sorted(template.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(template)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # not its mode: files linked from a cache are read-only
            shutil.copyfile(path, copy)
    for path in _weight_files(target):
        _overwrite(path, path.parent.relative_to(target), merged)


def _overwrite(path: Path, subfolder: Path, merged: TensorSource) -> None:
    with path.open("r+b") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        for key, entry in header.items():
            if entry["dtype"] not in _FLOATS:
                continue
            value = merged((subfolder / key).as_posix()).to(_FLOATS[entry["dtype"]]).contiguous()
            data = value.view(-1).view(torch.uint8).numpy()
            start, end = entry["data_offsets"]
            if data.nbytes != end - start:
                raise ValueError(
                    f"the merged {key} has {data.nbytes} bytes where {path} holds {end - start}: "
                    "the template is no model of this architecture"
                )
            file.seek(8 + header_bytes + start)
            with writing(path):
                file.write(data.data)
                file.flush()


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))
