"""A real S3 service for tests, in a folder of its own: infra/s3/server.sh."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.server.server import free_port
from tests.flows.toy import ROOT

SCRIPT = ROOT / "infra" / "s3" / "server.sh"
KEYS = {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecretsecret"}


@dataclass(frozen=True)
class S3:
    """A running service with the bucket `samovar`."""

    folder: Path
    endpoint_url: str

    def control(self, action: str) -> None:
        subprocess.run([SCRIPT, str(self.folder), action], check=True, capture_output=True)


@contextlib.contextmanager
def serve_s3(folder: Path, size_bytes: int = 4 * 2**30) -> Iterator[S3]:
    port = free_port()
    settings = {
        "S3_PORT": str(port),
        "S3_SIZE_BYTES": str(size_bytes),
        "S3_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"],
        "S3_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"],
    }
    command = [SCRIPT, str(folder), "start"]
    result = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        yield S3(folder, f"http://127.0.0.1:{port}")
    finally:
        subprocess.run([SCRIPT, str(folder), "stop"], check=False, capture_output=True)
