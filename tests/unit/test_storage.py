"""Object storage on a local folder, and what is said when S3 cannot be used."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from tasks.contract.stage import StageError
from tasks.store.storage import Storage, inner_path, open_storage


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"), None)


def test_bytes_come_back_as_they_were_written(store: Storage) -> None:
    store.write_bytes("a/b.bin", b"\x00\xff")
    assert store.read_bytes("a/b.bin") == b"\x00\xff"


def test_a_file_is_replaced(store: Storage) -> None:
    store.write_bytes("a", b"1")
    store.write_bytes("a", b"2")
    assert store.read_bytes("a") == b"2"


def test_files_and_prefixes_exist(store: Storage) -> None:
    store.write_bytes("a/b", b"")
    assert store.exists("a/b")
    assert store.exists("a")
    assert not store.exists("b")


def test_a_missing_file_is_named(store: Storage) -> None:
    with pytest.raises(StageError, match="store/nothing does not exist"):
        store.read_bytes("nothing")


def test_only_the_first_of_many_writers_creates_a_file(store: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.create("lock", b"%d" % number), range(32)))
    assert won.count(True) == 1
    assert store.read_bytes("lock") == b"%d" % won.index(True)


def test_a_listing_is_sorted_and_relative(store: Storage) -> None:
    for path in ("b/2", "b/1", "a", "b/c/3"):
        store.write_bytes(path, b"")
    assert store.list() == ["a", "b/1", "b/2", "b/c/3"]
    assert store.list("b") == ["b/1", "b/2", "b/c/3"]
    assert store.list("nothing") == []


def test_writing_leaves_no_other_files(store: Storage, tmp_path: Path) -> None:
    store.write_bytes("a", b"1")
    store.create("a", b"2")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"]


def test_a_folder_goes_up_and_comes_down_unchanged(store: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    (local / "x").write_bytes(b"x")
    (local / "sub" / "y").write_bytes(b"y" * 100_000)
    store.upload_folder(local, "models/one")
    assert store.list() == ["models/one/sub/y", "models/one/x"]
    store.download_folder("models/one", tmp_path / "back")
    assert (tmp_path / "back" / "x").read_bytes() == b"x"
    assert (tmp_path / "back" / "sub" / "y").read_bytes() == b"y" * 100_000


def test_a_failed_download_leaves_the_old_folder(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_bytes("m/a", b"1")
    store.download_folder("m", tmp_path / "back")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.get_file", fail)
    with pytest.raises(StageError, match=r"No space left.*free space"):
        store.download_folder("m", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "store"]
    assert (tmp_path / "back" / "a").read_bytes() == b"1"


def test_nothing_to_upload_is_an_error(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no file to upload"):
        store.upload_folder(tmp_path / "nothing", "m")


def test_nothing_to_download_is_an_error(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="store/m holds no files"):
        store.download_folder("m", tmp_path / "back")


def test_a_prefix_is_deleted_with_all_below_it(store: Storage) -> None:
    for path in ("a/1", "a/b/2", "c"):
        store.write_bytes(path, b"")
    store.delete("a")
    store.delete("nothing")
    assert store.list() == ["c"]


def test_all_that_starts_alike_is_deleted_with_what_a_dead_upload_left(
    store: Storage, tmp_path: Path
) -> None:
    for path in ("a/v1-x/1", "a/v1-y/b/2", "a/v10-z/3", "v1-w"):
        store.write_bytes(path, b"")
    (tmp_path / "store" / "a" / "v1-x" / ".partial-1").touch()
    assert store.delete_starting("a/v1-") == 3
    assert store.delete_starting("nothing/v1-") == 0
    assert store.list() == ["a/v10-z/3", "v1-w"]
    assert sorted(path.name for path in (tmp_path / "store" / "a").iterdir()) == ["v10-z"]


def test_what_a_dead_writer_left_goes_after_a_day(store: Storage, tmp_path: Path) -> None:
    store.write_bytes("a", b"1")
    old, new = (tmp_path / "store" / f".partial-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    store.write_bytes("a", b"2")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".partial-new", "a"]


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_the_whole_store_is_never_deleted(store: Storage, path: str) -> None:
    store.write_bytes("a", b"")
    with pytest.raises(ValueError, match=r"relative|refusing"):
        store.delete(path)
    assert store.list() == ["a"]


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd"])
def test_a_path_cannot_leave_the_store(store: Storage, path: str) -> None:
    with pytest.raises(StageError, match="expected a path relative to it"):
        store.write_bytes(path, b"")


@pytest.mark.parametrize("name", ["", ".", "/a", "a/../b", "..", "a\0b", "s3://b/a", None, 7])
def test_a_name_from_outside_stays_inside(name: object) -> None:
    with pytest.raises(StageError, match=r"^the list names .*expected a path relative"):
        inner_path(name, "the list")


def test_names_with_dots_and_of_any_alphabet_are_names() -> None:
    for name in ("a..b/c", ".hidden", "модель/веса.bin"):
        assert str(inner_path(name, "the list")) == name


@pytest.mark.parametrize("url", ["", "gs://bucket", "s3://", "s3:///", "file:///a", "~/a"])
def test_an_address_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(StageError, match="expected"):
        open_storage(url, None)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def refusing_server(httpserver: HTTPServer) -> str:
    """An S3 service that refuses every signature."""
    body = "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code></Error>"
    httpserver.expect_request(re.compile("")).respond_with_data(body, 403)
    return httpserver.url_for("").rstrip("/")


@pytest.mark.usefixtures("credentials")
def test_refused_credentials_are_named(refusing_server: str) -> None:
    store = open_storage("s3://bucket/prefix", refusing_server)
    with pytest.raises(StageError, match=r"s3://bucket/prefix/a was refused .*AWS_ACCESS_KEY_ID"):
        store.read_bytes("a")


@pytest.mark.usefixtures("credentials")
def test_an_unreachable_service_is_named() -> None:
    store = open_storage("s3://bucket/prefix", "http://127.0.0.1:9")
    with pytest.raises(StageError, match=r"cannot reach http://127\.0\.0\.1:9 .*endpoint_url"):
        store.write_bytes("a", b"")


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = open_storage("s3://bucket/other", "http://127.0.0.1:9")
    with pytest.raises(StageError, match="AWS_"):
        store.read_bytes("a")
