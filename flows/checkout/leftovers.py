"""Outputs that params.yaml no longer names are removed before DVC looks at the checkout."""

import re
import shutil
from pathlib import Path

import psutil

from tasks.params.load import Params

PARTIAL = re.compile(r"\..+\.partial-(\d+)")
"""What a stage writes before it takes its name, with the process that writes it."""


def remove_leftovers(params: Params) -> list[str]:
    """Remove variants and rungs of an earlier profile; what stages wrote, DVC's cache keeps.

    Returns:
        A sentence on each.
    """
    gone = [path for path in params.leftovers() if not _is_being_written(path)]
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [f"removed {path}: params.yaml has no such variant or rung" for path in gone]


def _is_being_written(path: Path) -> bool:
    """Whether a stage that somebody started by hand is at it."""
    writer = PARTIAL.fullmatch(path.name)
    return writer is not None and psutil.pid_exists(int(writer[1]))
