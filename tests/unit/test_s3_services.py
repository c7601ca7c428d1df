"""Services of S3 as they are beside AWS: without checksums, without If-None-Match, hanging."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from flows.checkout.remote import use_remote
from flows.processes.process import environment
from tasks import probe
from tasks.contract.stage import StageError
from tasks.params.addresses import PLAIN_REQUESTS, use_plain_requests
from tasks.params.load import Store
from tasks.store import storage as storage_module
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_storage
from tests.unit.fake_s3 import KEYS, FakeS3, serve_fake_s3
from tests.unit.test_check import params_with
from tests.unit.test_registry import make_model, publish

URL = "s3://bucket/Модели №1"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keys of the service, and nothing that an earlier test set."""
    for name, value in (KEYS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": ""}).items():
        monkeypatch.setenv(name, value)
    for name in PLAIN_REQUESTS:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with serve_fake_s3() as service:
        yield service


def test_a_model_goes_to_a_prefix_in_cyrillic_and_back(s3: FakeS3, tmp_path: Path) -> None:
    model = make_model(tmp_path / "модель")
    (model / "словарь.txt").write_text("Тула")
    registry = Registry(open_storage(URL, s3.url), "pico")
    name, _ = publish(registry, model)
    assert f"Модели №1/registry/pico/versions/{name}/словарь.txt" in s3.objects
    assert registry.verify(name) == []
    registry.download(registry.read(name), tmp_path / "назад")
    assert fingerprint_folder(tmp_path / "назад") == fingerprint_folder(model)


def test_dvc_pushes_to_a_prefix_in_cyrillic(s3: FakeS3, tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = store\n    no_scm = true\n")
    (tmp_path / "данные.txt").write_text("Тула")
    use_remote(tmp_path, Store(url=URL, endpoint_url=s3.url))
    for command in (["add", "--quiet", "данные.txt"], ["push", "--quiet"]):
        dvc = [sys.executable, "-m", "dvc", *command]
        subprocess.run(dvc, cwd=tmp_path, env=environment(), check=True)
    [(key, content)] = s3.objects.items()
    assert key.startswith("Модели №1/dvc/files/md5/")
    assert content.decode() == "Тула"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    use_plain_requests()
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "WHEN_SUPPORTED"
    assert os.environ["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "WHEN_REQUIRED"


def test_who_wants_checksums_sends_them(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    with pytest.raises(StageError):
        open_storage(URL, s3.url).write_bytes("a", b"text")
    assert s3.objects == {}, "this service refuses them"


@pytest.mark.parametrize("is_conditional", [True, False])
def test_the_check_tells_a_store_that_creates_a_name_twice(is_conditional: bool) -> None:
    with serve_fake_s3(is_conditional=is_conditional) as s3:
        s3.objects["Модели №1/probe.txt"] = b"a user's own"
        found = list(probe.store(params_with(store={"url": URL, "endpoint_url": s3.url})))
        assert s3.objects == {"Модели №1/probe.txt": b"a user's own"}
    assert [level for level, _ in found] == (["ok"] if is_conditional else ["ok", "warning"])
    assert is_conditional or "ignores If-None-Match" in found[1][1]


def test_a_service_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr(storage_module, "ATTEMPTS", 1)
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def accept() -> None:
            for _ in range(storage_module.ROUNDS):
                connections.append(server.accept()[0])

        listener = threading.Thread(target=accept, daemon=True)
        listener.start()
        with pytest.raises(StageError, match=rf"cannot reach {address}|S3 failed"):
            open_storage(URL, address).read_bytes("a")
        listener.join(5)
    for connection in connections:
        connection.close()
    assert len(connections) == storage_module.ROUNDS
