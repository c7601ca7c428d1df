"""infra/s3/policy.json in force: keys that can run and publish, and remove nothing."""

import json
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from botocore.session import get_session
from s3fs import S3FileSystem

from tasks.contract.stage import StageError
from tasks.store import registry as registry_module
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import Storage, open_storage
from tests.flows.s3 import KEYS, S3
from tests.flows.toy import ROOT, Toy

pytestmark = [pytest.mark.slow, pytest.mark.s3]
WORKER_KEYS = {"AWS_ACCESS_KEY_ID": "workeraccess", "AWS_SECRET_ACCESS_KEY": "workersecretsecret"}
BUCKET = "guarded"


def client(service: S3, keys: dict[str, str]):
    return get_session().create_client(
        "s3",
        endpoint_url=service.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture(scope="module")
def guarded(s3_service: S3) -> S3:
    """The service with a versioned bucket under the policy, and a second user."""
    s3_service.control("start")
    folder = s3_service.folder
    keys = [f"--access-key={WORKER_KEYS['AWS_ACCESS_KEY_ID']}"]
    keys += [f"--secret-key={WORKER_KEYS['AWS_SECRET_ACCESS_KEY']}"]
    admin = ["radosgw-admin", "-c", f"{folder}/ceph.conf", "-n", "client.rgw.a"]
    user = ["user", "create", "--uid=worker", "--display-name=worker"]
    command = [*admin, "-k", f"{folder}/keyring", *user, *keys]
    subprocess.run(command, check=True, capture_output=True)
    owner = client(s3_service, KEYS)
    owner.create_bucket(Bucket=BUCKET)
    status = {"Status": "Enabled"}
    owner.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=status)
    policy = (ROOT / "infra/s3/policy.json").read_text()
    policy = policy.replace("BUCKET", BUCKET).replace("WORKER", "worker")
    owner.put_bucket_policy(Bucket=BUCKET, Policy=policy)
    return s3_service


@pytest.fixture
def worker(guarded: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Storage in the bucket with the keys of the worker."""
    for name, value in WORKER_KEYS.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they keep the keys that they were made with
    yield open_storage(f"s3://{BUCKET}/store", guarded.endpoint_url)
    S3FileSystem.clear_instance_cache()


def model(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_text(text)
    return folder


def publish(storage: Storage, folder: Path) -> str:
    fingerprint = fingerprint_folder(folder)
    registry = Registry(storage, "model")
    version, is_new = registry.publish(folder, fingerprint=fingerprint, mean=0.5, scores={}, run={})
    assert is_new
    return version.version


def test_a_whole_run_needs_no_more(toy: Toy, guarded: S3):
    toy.set_params(store={"url": f"s3://{BUCKET}/run", "endpoint_url": guarded.endpoint_url})
    status, output = toy.retrain(**WORKER_KEYS)
    assert status == 0, output
    assert "in sync" in toy.dvc("status", "--cloud", **WORKER_KEYS).stdout


def test_the_worker_publishes_and_cannot_remove(worker: Storage, tmp_path: Path):
    version = publish(worker, model(tmp_path / "model", "first"))
    with pytest.raises(StageError, match="refused"):
        worker.delete(f"registry/model/versions/{version}")
    assert Registry(worker, "model").verify(version) == []


def test_what_stolen_keys_overwrite_is_still_there_as_the_version_before(
    worker: Storage, guarded: S3, tmp_path: Path
):
    version = publish(worker, model(tmp_path / "model", "sound"))
    path = f"registry/model/versions/{version}/weights.bin"
    worker.write_bytes(path, b"poison")
    assert Registry(worker, "model").verify(version) == [
        f"{path} differs from its hash in manifest.json"
    ]
    stolen = client(guarded, WORKER_KEYS)
    kept = stolen.list_object_versions(Bucket=BUCKET, Prefix=f"store/{path}")["Versions"]
    found = [
        {"Bucket": BUCKET, "Key": each["Key"], "VersionId": each["VersionId"]} for each in kept
    ]
    assert {stolen.get_object(**each)["Body"].read() for each in found} == {b"sound", b"poison"}
    for each in found:
        with pytest.raises(ClientError, match="AccessDenied"):
            stolen.delete_object(**each)


@pytest.mark.parametrize("action", ["policy", "versioning", "bucket"])
def test_the_worker_cannot_change_the_bucket(guarded: S3, action: str):
    stolen = client(guarded, WORKER_KEYS)
    open_to_all = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [open_to_all]})
    off = {"Status": "Suspended"}
    attempts = {
        "policy": lambda: stolen.put_bucket_policy(Bucket=BUCKET, Policy=policy),
        "versioning": lambda: stolen.put_bucket_versioning(
            Bucket=BUCKET, VersioningConfiguration=off
        ),
        "bucket": lambda: stolen.delete_bucket(Bucket=BUCKET),
    }
    with pytest.raises(ClientError, match="AccessDenied"):
        attempts[action]()


def test_what_a_killed_publisher_left_stays_and_the_next_publishes(
    worker: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(registry_module, "ABANDONED_AFTER", timedelta(0))
    registry = Registry(worker, "model")
    number, _ = registry._claim()
    left = f"registry/model/versions/{number}-dead/weights.bin"
    worker.write_bytes(left, b"half")
    publish(worker, model(tmp_path / "model", "second"))
    assert f"the unfinished {number} stays in the store" in caplog.text
    assert worker.exists(left)


def test_under_object_lock_nobody_removes_what_is_published(
    s3: S3, keys: None, tmp_path: Path
) -> None:
    """The owner's own keys: a removal hides the object, its version stays."""
    owner = client(s3, KEYS)
    owner.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    rule = {"ObjectLockEnabled": "Enabled", "Rule": retention}
    owner.put_object_lock_configuration(Bucket="locked", ObjectLockConfiguration=rule)
    S3FileSystem.clear_instance_cache()
    storage = open_storage("s3://locked/store", s3.endpoint_url)
    version = publish(storage, model(tmp_path / "model", "locked"))
    assert Registry(storage, "model").verify(version) == []
    path = f"store/registry/model/versions/{version}/weights.bin"
    owner.delete_object(Bucket="locked", Key=path)
    [kept] = owner.list_object_versions(Bucket="locked", Prefix=path)["Versions"]
    found = {"Bucket": "locked", "Key": path, "VersionId": kept["VersionId"]}
    with pytest.raises(ClientError, match="AccessDenied"):
        owner.delete_object(**found)
    assert owner.get_object(**found)["Body"].read() == b"locked"
