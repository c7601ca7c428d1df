"""Outputs and published models in a real S3 service, also when it refuses, dies or comes back."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from s3fs import S3FileSystem

from flows.server.server import free_port
from tasks import probe
from tasks.contract.stage import StageError
from tasks.params.load import load_params
from tasks.store import registry as registry_module
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_filesystem, open_storage
from tests.flows.s3 import KEYS, S3
from tests.flows.toy import ROOT, Toy, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.s3]


@pytest.fixture
def stored(toy: Toy, s3: S3, request: pytest.FixtureRequest) -> Toy:
    """A fresh toy checkout whose store is a prefix of its own in the bucket."""
    url = f"s3://samovar/{request.node.name}"
    toy.set_params(store={"url": url, "endpoint_url": s3.endpoint_url})
    return toy


ONE_STAGE = ("--stages", "ingest")


def test_outputs_come_back_from_the_bucket(stored: Toy):
    status, output = stored.retrain(*ONE_STAGE, **KEYS)
    assert status == 0, output
    before = (stored.root / "artifacts/ingest/text.txt").read_bytes()
    shutil.rmtree(stored.root / ".dvc" / "cache")
    shutil.rmtree(stored.root / "artifacts")
    pulled = stored.dvc("pull", "ingest", **KEYS)
    assert pulled.returncode == 0, pulled.stderr
    assert (stored.root / "artifacts/ingest/text.txt").read_bytes() == before


def test_the_check_tries_the_bucket_and_misses_its_versions(
    s3: S3, monkeypatch: pytest.MonkeyPatch
):
    params = load_params(ROOT / "infra/profiles/sample.yaml")
    where = {"url": "s3://samovar/checked", "endpoint_url": s3.endpoint_url}
    params = params.model_copy(update={"store": params.store.model_copy(update=where)})
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    found = list(probe.store(params))
    assert [level for level, _ in found] == ["ok", "warning"]
    assert "bucket samovar keeps no versions" in found[1][1]
    assert open_storage(where["url"], s3.endpoint_url).list() == []
    filesystem, _ = open_filesystem("s3://samovar", s3.endpoint_url)
    status = {"Status": "Enabled"}
    filesystem.call_s3("put_bucket_versioning", Bucket="samovar", VersioningConfiguration=status)
    try:
        # this gateway ignores If-None-Match in a bucket with versions, which the check finds
        found = [text for _, text in probe.store(params)]
        assert not any("keeps no versions" in text for text in found)
    finally:
        status = {"Status": "Suspended"}
        filesystem.call_s3(
            "put_bucket_versioning", Bucket="samovar", VersioningConfiguration=status
        )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    S3FileSystem.clear_instance_cache()  # they keep the keys that they were made with
    try:
        with pytest.raises(StageError, match="AWS_SECRET_ACCESS_KEY"):
            next(probe.store(params))
    finally:
        S3FileSystem.clear_instance_cache()


def test_no_key_reaches_a_file(stored: Toy):
    stored.retrain(*ONE_STAGE, **KEYS)
    config = (stored.root / ".dvc" / "config.local").read_text()
    assert "s3://samovar/" in config
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in config + (stored.root / ".dvc/config").read_text()


def test_wrong_secret_is_said_at_once(stored: Toy, s3: S3):
    wrong = KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    status, output = stored.retrain(*ONE_STAGE, **wrong)
    assert status == 1
    assert stored.order() == ["ingest"]
    assert "push again failed" in output
    assert "403" in output
    assert f"the store {stored.store_url()} at {s3.endpoint_url} refuses" in output
    assert "AWS_SECRET_ACCESS_KEY" in output
    assert output.count("push again             started") == 1, "a refusal is not tried again"


def test_run_without_the_service_says_so_and_a_rerun_only_pushes(stored: Toy, s3: S3):
    s3.control("stop")
    status, output = stored.retrain(*ONE_STAGE, **KEYS, AWS_MAX_ATTEMPTS="1")
    assert status == 1
    assert s3.endpoint_url in output
    assert output.count("push again             started") > 1, "the network may come back"
    s3.control("start")
    status, output = stored.retrain(*ONE_STAGE, **KEYS)
    assert status == 0, output
    assert stored.order() == ["ingest"]


def test_killed_push_is_completed_by_the_next(stored: Toy, s3: S3):
    size_bytes = 256 * 2**20
    status, output = stored.retrain(*ONE_STAGE, **KEYS)
    assert status == 0, output
    with (stored.root / "big.bin").open("wb") as file:
        file.write(os.urandom(2**20) * (size_bytes // 2**20))
    assert stored.dvc("add", "big.bin").returncode == 0
    port = int(s3.endpoint_url.rpartition(":")[2])
    with stored.start("push", "big.bin.dvc", module="dvc", **KEYS) as push:
        wait_until(lambda: has_connection(push.pid, port))
        push.kill()
    assert stored.dvc("status", "--cloud", "big.bin.dvc", **KEYS).stdout.count("big.bin") > 0
    again = stored.dvc("push", "big.bin.dvc", **KEYS)
    assert again.returncode == 0, again.stderr
    assert "in sync" in stored.dvc("status", "--cloud", "big.bin.dvc", **KEYS).stdout


def has_connection(pid: int, port: int) -> bool:
    return any(
        each.raddr and each.raddr.port == port for each in psutil.Process(pid).net_connections()
    )


def test_folder_survives_the_bucket(s3: S3, keys, tmp_path: Path):
    storage = open_storage("s3://samovar/folder", s3.endpoint_url)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "model.bin").write_bytes(os.urandom(9 * 2**20))
    (tmp_path / "in" / "deep" / "имя.txt").write_text("самовар")
    storage.upload_folder(tmp_path / "in", "v1")
    storage.download_folder("v1", tmp_path / "out")
    assert fingerprint_folder(tmp_path / "in") == fingerprint_folder(tmp_path / "out")


def test_of_many_writers_one_creates(s3: S3, keys):
    storage = open_storage("s3://samovar/claims", s3.endpoint_url)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create("claim", b"%d" % number), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes("claim") == b"%d" % won.index(True)


def test_published_model_is_one_version_however_often_it_is_published(s3: S3, keys, tmp_path: Path):
    registry = Registry(open_storage("s3://samovar/published", s3.endpoint_url), "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    arguments = {
        "fingerprint": fingerprint_folder(tmp_path / "model"),
        "mean": 0.5,
        "scores": {"task": 0.5},
        "run": {"git_commit": None},
    }
    version, is_new = registry.publish(tmp_path / "model", **arguments)
    assert is_new
    assert registry.publish(tmp_path / "model", **arguments) == (version, False)
    assert [each.version for each in registry.versions()] == [version.version]


PUBLISHER = """
import sys
from pathlib import Path
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_storage

model = Path(sys.argv[1])
registry = Registry(open_storage(sys.argv[2], sys.argv[3]), "model")
registry.publish(model, fingerprint=fingerprint_folder(model), mean=0.5, scores={}, run={})
"""


def test_what_a_killed_publisher_uploaded_is_no_version(
    s3: S3, keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    storage = open_storage("s3://samovar/dying", s3.endpoint_url)
    registry = Registry(storage, "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.txt").write_text("first, and whole")
    with (tmp_path / "model" / "weights.bin").open("wb") as file:
        file.write(os.urandom(2**20) * 256)
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path / "model"), storage.url]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, s3.endpoint_url], env=environment) as publisher:
        wait_until(lambda: bool(storage.list("registry/model/versions")), 60)
        publisher.kill()
    assert registry.versions() == []
    (tmp_path / "model" / "weights.bin").write_bytes(b"small")
    monkeypatch.setattr(registry_module, "ABANDONED_AFTER", timedelta(0))
    version, is_new = registry.publish(
        tmp_path / "model",
        fingerprint=fingerprint_folder(tmp_path / "model"),
        mean=0.5,
        scores={},
        run={},
    )
    assert is_new
    assert registry.verify(version.version) == []
    left = storage.list("registry/model/versions")
    assert {path.split("/")[3] for path in left} == {version.version}


def test_storage_names_the_address_of_a_service_that_is_down(keys):
    storage = open_storage("s3://samovar/x", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StageError, match=r"127\.0\.0\.1"):
        storage.read_bytes("file")
