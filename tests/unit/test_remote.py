import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.checkout.remote import use_remote
from flows.errors import FlowError
from flows.processes.process import environment
from tasks.params.load import Store
from tests.unit.file_limit import files_up_to

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


@pytest.mark.parametrize(
    "content",
    [b"[core\n", b"['remote \"mine\"']\nurl = /\xcc\xcf\xa3\n", b"[core]\nremot = a\n"],
    ids=["no section", "koi8-r", "no setting of DVC"],
)
def test_broken_configuration_is_said_and_stays(repository, content):
    local = repository / ".dvc" / "config.local"
    local.write_bytes(content)
    with pytest.raises(FlowError, match=r"DVC remote .*config\.local"):
        use_remote(repository, Store(url="store", endpoint_url=None))
    assert local.read_bytes() == content


def test_a_full_disk_leaves_the_settings_of_the_user(repository):
    local = repository / ".dvc" / "config.local"
    local.write_text("[cache]\n    dir = /mnt/cache\n" + "    # mine\n" * 100)
    before = local.read_bytes()
    with files_up_to(len(before) // 2), pytest.raises(FlowError, match="DVC remote"):
        use_remote(repository, Store(url="store", endpoint_url=None))
    assert local.read_bytes() == before
    assert list((repository / ".dvc" / "tmp").iterdir()) == []


def test_comments_and_the_mode_of_the_file_stay(repository):
    local = repository / ".dvc" / "config.local"
    local.write_text("# моё\n['remote \"mine\"']\n    url = /mnt/диск  # тайна\n")
    local.chmod(0o600)
    use_remote(repository, Store(url="store", endpoint_url=None))
    text = local.read_text(encoding="utf-8")
    assert "# моё" in text
    assert "# тайна" in text
    assert local.stat().st_mode & 0o777 == 0o600


CYRILLIC = """
from pathlib import Path
from flows.checkout.remote import use_remote
from tasks.params.load import Store
for url in ("s3://bucket/модели", "склад, #1"):
    use_remote(Path.cwd(), Store(url=url, endpoint_url=None))
"""


def test_paths_in_cyrillic_reach_dvc_in_any_locale(repository, monkeypatch):
    checkout = repository / "Самовар №1"
    checkout.mkdir()
    (repository / ".dvc").rename(checkout / ".dvc")
    (checkout / ".dvc" / "config.local").write_text("['remote \"моё\"']\n    url = /mnt/диск\n")
    (checkout / "данные.txt").write_text("Тула")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    python = sys.executable
    for command in (
        [python, "-c", CYRILLIC],
        [python, "-m", "dvc", "add", "--quiet", "данные.txt"],
        [python, "-m", "dvc", "push", "--quiet"],
    ):
        subprocess.run(command, cwd=checkout, env=environment(), check=True)
    [pushed] = (path for path in (checkout / "склад, #1" / "dvc").rglob("*") if path.is_file())
    assert pushed.read_text(encoding="utf-8") == "Тула"
    assert "url = /mnt/диск" in (checkout / ".dvc" / "config.local").read_text(encoding="utf-8")
