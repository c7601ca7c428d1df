"""What every stage process shares: logging, a clean death, atomic outputs, time and memory."""

import contextlib
import ctypes
import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tasks.params.load import Params, ParamsError, load_params
from tasks.params.paths import TIMINGS

PR_SET_PDEATHSIG = 1
DVC_CHECK_S = 0.5
SAVE_S = 20.0
"""How long a training may take to save its state after SIGTERM when its DVC has died."""

logger = logging.getLogger(__name__)

_meters: list[Callable[[], dict[str, float]]] = []
"""What else is recorded of this process when it ends."""


class StageError(ValueError):
    """Bad input found by a stage; the message says what was given, expected and what to do."""


def run_stage(name: str, body: Callable[[Params], None]) -> None:
    """Run `body` as the stage `name` and exit: 0, or 1 with a message a person can act on.

    Wall time, peak memory and what the stage used of its GPUs go to artifacts/timings/, which is no
    DVC output: they differ from run to run while outputs must not.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    die_with_parent()
    started = time.monotonic()
    try:
        body(load_params())
    except (StageError, ParamsError) as error:
        logger.error("stage %s stopped: %s", name, error)  # noqa: TRY400 - bad input needs no trace
        sys.exit(1)
    except OSError as error:
        logger.error("stage %s stopped: %s", name, error)  # noqa: TRY400
        logger.debug("trace", exc_info=error)
        sys.exit(1)
    if int(os.environ.get("RANK", "0")):
        return  # the record is that of the leading process, which holds the GPUs of all
    TIMINGS.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "stage": name,
        "wall_s": round(time.monotonic() - started, 2),
        "peak_bytes": _peak_bytes(),
    }
    for read in _meters:
        record |= read()
    write_json(TIMINGS / f"{name}.json", record)


def refuse_leftovers(params: Params) -> None:
    """Called by stages that depend on the folder of all variants or rungs, before they read it.

    Raises:
        StageError: It holds more than params.yaml names, which DVC would record as an input.
    """
    strangers = params.leftovers()
    if strangers:
        names = " ".join(map(str, strangers))
        raise StageError(
            f"{names}: no variant or rung of params.yaml, but below a folder that this stage "
            f"depends on. Remove what an earlier profile left: rm -r {names}"
        )


def record_at_end(read: Callable[[], dict[str, float]]) -> None:
    """Add what `read` returns to the record of this stage when it ends well."""
    _meters.append(read)


def _peak_bytes() -> int:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(each).ru_maxrss for each in who)


def die_with_parent() -> None:
    """See to it that no orphan keeps training: this process ends with its parent and with its DVC.

    The kernel kills it when the parent dies; between it and DVC stands a shell that lives on, so a
    thread looks whether DVC is there, and ends the stage as a user would: SIGTERM, which saves a
    training, then SIGKILL. Linux only; elsewhere a killed `dvc` leaves its stage running, which is
    said in the log.
    """
    if not sys.platform.startswith("linux"):
        logger.warning("no parent-death signal on %s: kill stages by hand", sys.platform)
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # a machine may hide the processes of other users, and then no DVC of ours is above
    with contextlib.suppress(psutil.Error):
        for above in psutil.Process().parents()[:2]:
            if any(Path(word).name == "dvc" for word in above.cmdline()[:3]):
                threading.Thread(target=_end_with, args=(above,), daemon=True).start()


def _end_with(dvc: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
            time.sleep(DVC_CHECK_S)
    logger.error("dvc is gone: this stage ends, its output would be lost")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_S)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its name, whole, at the end.

    Nothing appears under `target` when the body fails or the process dies; leftovers of earlier
    deaths are removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(stale)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `content` under a temporary name, then rename: sorted keys, one byte form."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        raise StageError(f"{path} could not be written: {error}") from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file.

    Raises:
        StageError: The file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(
            f"{path} does not exist: run the stage that writes it (dvc repro)"
        ) from None
    except json.JSONDecodeError as error:
        raise StageError(f"{path} is no valid JSON ({error}): run its stage again") from error
