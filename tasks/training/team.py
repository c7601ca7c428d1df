"""One training on several processes: the stage starts them, or torchrun has.

The stage's own process leads; the others run the same command with RANK set, take part in every
step and write nothing. Each dies with its parent, so a killed stage leaves none behind.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import torch
import torch.distributed as dist

from model.training.devices.team import Team
from tasks.contract.stage import StageError
from tasks.params.load import Compute

WAIT_S = 60
POLL_S = 0.5
GRACE_S = 10.0
"""How long this process has to see by itself that another failed, as it does with gloo."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def joined_team(compute: Compute, device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """Join the processes of this training, starting them if need be; yields this one's device.

    Raises:
        StageError: More processes are asked for than there are GPUs, or another process failed.
    """
    started_by_torchrun = "WORLD_SIZE" in os.environ
    size = int(os.environ.get("WORLD_SIZE", compute.processes))
    if size == 1:
        yield Team(), device
        return
    device = _own_device(device, size)
    others = [] if started_by_torchrun else _start_others(size)
    try:
        with _watched(others):
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            yield Team(), device
            _wait_for(others, size)
    except RuntimeError as error:
        if any(other.poll() not in {None, 0} for other in others):
            raise StageError(f"a process of this training died: {error}") from error
        raise
    finally:
        for other in others:
            other.kill()
        if dist.is_initialized():
            dist.destroy_process_group()


def _own_device(device: torch.device, size: int) -> torch.device:
    """The GPU of this process, or the CPU for all."""
    if device.type != "cuda":
        return device
    available = torch.cuda.device_count()
    if size > available:
        raise StageError(
            f"compute.processes is {size}, but torch sees {available} GPUs: one process needs "
            "one GPU; lower compute.processes"
        )
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


@contextlib.contextmanager
def _watched(others: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """End this process when another has failed, even where it waits for that one in a collective.

    Weights that are shared have collectives inside every pass, so a process that runs out of memory
    there can agree on nothing with the rest (`Team.together`), and NCCL waits for minutes.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_end_with, args=(others, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _end_with(others: list[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    while not ended.wait(POLL_S):
        if all(other.poll() in {None, 0} for other in others) or ended.wait(GRACE_S):
            continue
        logger.error("a process of this training failed, see above; the others end with it")
        for other in others:
            other.kill()
        os._exit(1)  # the main thread is in nobody's reach


def _wait_for(others: list[subprocess.Popen[bytes]], size: int) -> None:
    failed = sum(other.wait(WAIT_S) != 0 for other in others)
    if failed:
        raise StageError(f"{failed} of the {size} processes of this training failed, see above")


def _start_others(size: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes of rank 1 and above; set the environment that this one joins by."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    specification = sys.modules["__main__"].__spec__
    if specification is None:
        raise StageError("compute.processes above 1 needs a stage started by python -m")
    module = specification.name.removesuffix(".__main__")
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    logger.info("training on %d processes", size)
    return [
        subprocess.Popen(command, env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(1, size)
    ]
