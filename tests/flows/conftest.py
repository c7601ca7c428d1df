"""Toy checkouts and a real Prefect server."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server.server import free_port, is_up
from tests.flows.s3 import KEYS, S3, serve_s3
from tests.flows.toy import Toy, toy_environment, wait_until, write_toy


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised toy checkout to copy: git and DVC take a second each."""
    root = tmp_path_factory.mktemp("template") / "toy"
    write_toy(root)
    return root


@pytest.fixture(scope="session")
def prefect_server(toy_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a real server, `python -m flows.ui` in a checkout of its own."""
    root = tmp_path_factory.mktemp("server") / "toy"
    shutil.copytree(toy_template, root, symlinks=True)
    port = free_port()
    command = [sys.executable, "-m", "flows.ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=root, env=toy_environment()) as process:
        url = f"http://127.0.0.1:{port}/api"
        try:
            wait_until(lambda: is_up(url), 120)
            yield url
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def ran_template(
    toy_template: Path, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A toy checkout after a green run."""
    root = tmp_path_factory.mktemp("ran") / "toy"
    shutil.copytree(toy_template, root, symlinks=True)
    status, output = Toy(root, prefect_server).retrain()
    assert status == 0, output
    (root / "output.txt").write_text(output)
    return root


@pytest.fixture
def toy(toy_template: Path, prefect_server: str, tmp_path: Path) -> Toy:
    """A fresh toy checkout in which nothing has run."""
    shutil.copytree(toy_template, tmp_path / "toy", symlinks=True)
    return Toy(tmp_path / "toy", prefect_server)


@pytest.fixture
def ran(ran_template: Path, prefect_server: str, tmp_path: Path) -> Toy:
    """A toy checkout in which everything is up to date."""
    shutil.copytree(ran_template, tmp_path / "toy", symlinks=True)
    (tmp_path / "toy" / "knobs" / "order.txt").unlink()
    return Toy(tmp_path / "toy", prefect_server)


@pytest.fixture(scope="session")
def s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    if shutil.which("radosgw") is None:
        pytest.skip("radosgw is not installed, NO S3 TEST RUNS: see infra/s3/README.md")
    with serve_s3(tmp_path_factory.mktemp("s3") / "state") as service:
        yield service


@pytest.fixture
def s3(s3_service: S3) -> S3:
    """The service, up again if a test before has stopped it."""
    s3_service.control("start")
    return s3_service


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the service in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
