import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.checkout.remote import use_remote
from flows.errors import FlowError
from tasks.params.load import Store

ENDPOINT = "http://127.0.0.1:7480"


@pytest.fixture
def repository(tmp_path) -> Path:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = store\n    no_scm = true\n")
    return tmp_path


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://another")


def written(repository: Path) -> dict[str, str]:
    """The remote as config.local holds it, read without DVC."""
    parser = configparser.ConfigParser()
    parser.read(repository / ".dvc" / "config.local")
    return dict(parser["'remote \"store\"'"])


def test_folder_becomes_an_absolute_path_below_the_checkout(repository):
    address = use_remote(repository, Store(url="store", endpoint_url=None))
    assert address == str(repository / "store" / "dvc")
    assert written(repository) == {"url": address}


def test_bucket_keeps_its_endpoint(repository):
    use_remote(repository, Store(url="s3://bucket/prefix/", endpoint_url=ENDPOINT))
    assert written(repository) == {"url": "s3://bucket/prefix/dvc", "endpointurl": ENDPOINT}


def test_dependencies_in_a_bucket_are_read_from_the_same_service(repository):
    use_remote(repository, Store(url="store", endpoint_url=ENDPOINT))
    assert os.environ["AWS_ENDPOINT_URL"] == ENDPOINT
    assert "endpointurl" not in written(repository), "DVC allows none for a folder"


def test_without_an_endpoint_the_environment_decides(repository):
    use_remote(repository, Store(url="store", endpoint_url=None))
    assert os.environ["AWS_ENDPOINT_URL"] == "http://another"


def test_old_endpoint_goes_with_the_old_bucket(repository):
    use_remote(repository, Store(url="s3://bucket", endpoint_url=ENDPOINT))
    use_remote(repository, Store(url="store", endpoint_url=None))
    assert "endpointurl" not in written(repository)


def test_other_settings_stay(repository):
    local = repository / ".dvc" / "config.local"
    local.write_text("['remote \"store\"']\n    profile = mine\n[cache]\n    dir = /mnt/cache\n")
    use_remote(repository, Store(url="s3://bucket", endpoint_url=None))
    assert written(repository) == {"url": "s3://bucket/dvc", "profile": "mine"}
    assert "/mnt/cache" in local.read_text()


def test_dvc_sees_the_remote(repository):
    use_remote(repository, Store(url="store", endpoint_url=None))
    command = [sys.executable, "-m", "dvc", "remote", "list"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert listed.stdout.split()[:2] == ["store", str(repository / "store" / "dvc")]


def test_broken_configuration_is_said(repository):
    (repository / ".dvc" / "config.local").write_text("[core\n")
    with pytest.raises(FlowError, match="DVC remote"):
        use_remote(repository, Store(url="store", endpoint_url=None))
