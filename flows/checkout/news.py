"""Data that come from elsewhere: `.dvc` files of `dvc import-url`, brought up to date before a run.

DVC compares what the source says of its files (S3: their ETags) with what the `.dvc` file
records, and fetches only when they differ. It removes the old data first, so a fetch that is
killed leaves a part of the new; a marker tells that part from a person's edit.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dvc.exceptions import DvcException

from flows.errors import FlowError
from flows.plan.dag import changed, check_data, open_repo
from tasks.params.paths import STATE

MARKERS = STATE / "updating"


def find_imports() -> list[str]:
    """The `.dvc` files of this repository that were made by `dvc import-url`.

    Raises:
        FlowError: The repository cannot be read, or imported data were edited by hand: fetching
            would overwrite the edit.
    """
    try:
        with open_repo() as repo:
            found = [stage for stage in repo.index.stages if stage.is_import]
            whole = {
                str(stage.relpath): all(Path(out.fs_path).exists() for out in stage.outs)
                for stage in found
            }
    except DvcException as error:
        raise FlowError(f"the .dvc files cannot be read: {error}") from error
    guarded = [name for name, is_whole in whole.items() if is_whole and not _marker(name).exists()]
    if guarded:
        changes = changed()
        check_data({name: changes[name] for name in guarded if name in changes})
    return sorted(whole)


@contextlib.contextmanager
def marked(name: str) -> Iterator[None]:
    """Leave a marker if the body does not come to its end: what is there then is a part."""
    marker = _marker(name)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    yield
    marker.unlink()


def _marker(name: str) -> Path:
    return MARKERS / name.replace("/", "-")
