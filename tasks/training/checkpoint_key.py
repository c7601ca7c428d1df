"""The name under which a training keeps its checkpoints: equal exactly when resuming is right."""

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from tasks.contract.records import MANIFEST

FIRST_PARTY = ("model", "tasks")


def checkpoint_key(settings: dict[str, Any], inputs: list[Path]) -> str:
    """Hash over settings, the imported code of this project, library versions and input contents.

    A checkpoint found under this key continues the very training that wrote it; any change of a
    value, a line of code, a library or an input file begins a new one.

    Args:
        settings: JSON values that the training depends on.
        inputs: Table folders (their manifest, which holds the hash of each shard, stands for them)
            and model folders (hashed file by file).
    """
    content = {
        "settings": settings,
        "versions": [platform.python_version(), torch.__version__, transformers.__version__],
        "code": _imported_code(),
        "inputs": {str(folder): folder_hashes(folder) for folder in inputs},
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _imported_code() -> dict[str, str]:
    """Hash of each imported module of this project; the one being run is found by its real name."""
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    files = {spec.name: spec.origin for spec in specs if spec is not None and spec.origin}
    return {
        name: _sha256(Path(file))
        for name, file in files.items()
        if name.split(".")[0] in FIRST_PARTY
    }


def folder_hashes(folder: Path) -> dict[str, str]:
    """Hash of each file; of a table folder its manifest, which holds those of the shards."""
    manifest = folder / MANIFEST
    files = [manifest] if manifest.exists() else sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): _sha256(path) for path in files if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
