"""Teams of processes, as torchrun starts them."""

import os

from flows.server.server import free_port
from tests.fork_server import ROOT, Forked, start


def start_team(size: int, module: str, *arguments: str) -> list[Forked]:
    """Processes over gloo, as torchrun starts them."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }
    return [
        start(module, arguments, cwd=ROOT, environment=environment | {"RANK": str(rank)})
        for rank in range(size)
    ]
