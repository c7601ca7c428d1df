"""What botocore sends to S3: several services refuse the checksum trailers it sends by default."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PUT = """
import sys
from tasks.store.storage import open_storage
open_storage("s3://bucket/prefix", sys.argv[1]).write_bytes("file.txt", b"text")
"""
NAMES = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


class Bucket(ThreadingHTTPServer):
    """Answers every request and keeps the headers of uploads."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.uploads: list[dict[str, str]] = []


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # an upload waits for 100 Continue
    server: Bucket  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.uploads.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def put(bucket: Bucket, **environment: str) -> dict[str, str]:
    """The headers of an upload by a process that has this environment."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}
    own = {name: value for name, value in os.environ.items() if name not in NAMES}
    address = f"http://127.0.0.1:{bucket.server_port}"
    command = [sys.executable, "-c", PUT, address]
    subprocess.run(command, cwd=ROOT, env=own | keys | environment, check=True, timeout=60)
    [headers] = bucket.uploads
    return headers


def test_an_upload_has_no_checksum_that_nobody_asked_for(bucket: Bucket) -> None:
    headers = put(bucket)
    assert not [name for name in headers if "checksum" in name or name == "x-amz-trailer"]
    assert "content-encoding" not in headers


def test_who_wants_checksums_gets_them(bucket: Bucket) -> None:
    headers = put(bucket, AWS_REQUEST_CHECKSUM_CALCULATION="WHEN_SUPPORTED")
    assert [name for name in headers if "checksum" in name or name == "x-amz-trailer"]
