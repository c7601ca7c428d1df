"""Teams of processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

from flows.server.server import free_port

ROOT = Path(__file__).resolve().parents[2]


def start_team(size: int, module: str, *arguments: str) -> list[subprocess.Popen[bytes]]:
    """Processes over gloo, as torchrun starts them."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", module, *arguments]
    return [
        subprocess.Popen(command, cwd=ROOT, env=environment | {"RANK": str(rank)})
        for rank in range(size)
    ]
