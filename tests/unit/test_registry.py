"""The registry: whole versions or nothing, one number per version, one version per fingerprint."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.contract.stage import StageError
from tasks.store import registry as registry_module
from tasks.store.registry import Registry, fingerprint_folder, hash_folder
from tasks.store.storage import Storage, open_storage

RUN = {"params_sha256": "a" * 64, "dvc_lock_sha256": None, "git_commit": None}


def make_model(folder: Path, weights: str = "weights") -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"), None)


@pytest.fixture
def registry(storage: Storage) -> Registry:
    return Registry(storage, "pico")


def publish(registry: Registry, model: Path, mean: float = 0.5) -> tuple[str, bool]:
    version, is_new = registry.publish(
        model,
        fingerprint=fingerprint_folder(model),
        mean=mean,
        scores={"STS": mean},
        run=RUN,
    )
    return version.version, is_new


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fingerprint_is_the_sha256_of_what_sha256sum_prints(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    listing = subprocess.run(
        ["sha256sum", "1_Pooling/config.json", "model.safetensors"],
        cwd=model,
        capture_output=True,
        check=True,
    ).stdout
    assert fingerprint_folder(model) == hashlib.sha256(listing).hexdigest()


def test_fingerprint_changes_when_a_file_moves(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    before = fingerprint_folder(model)
    (model / "1_Pooling" / "config.json").rename(model / "config.json")
    assert fingerprint_folder(model) != before


def test_fingerprint_of_a_missing_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no model: run the stage"):
        fingerprint_folder(tmp_path / "model")


def test_a_published_version_reads_back_as_it_was_written(
    registry: Registry, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    name, is_new = publish(registry, model, 0.61)
    version = registry.read(name)
    assert is_new
    assert name == f"v0001-{fingerprint_folder(model)[:8]}"
    assert (version.mean, version.scores, version.run) == (0.61, {"STS": 0.61}, RUN)
    assert version.files == hash_folder(model)
    assert registry.versions() == [version]


def test_the_stored_files_equal_the_model_folder(registry: Registry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    name, _ = publish(registry, model)
    stored = Path(registry.address(name))
    (stored / "manifest.json").unlink()
    assert fingerprint_folder(stored) == fingerprint_folder(model)


def test_the_same_fingerprint_is_published_once(registry: Registry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    first, _ = publish(registry, model)
    before = files_below(tmp_path / "store")
    assert publish(registry, model) == (first, False)
    assert files_below(tmp_path / "store") == before


def test_versions_are_sorted_by_number_and_the_pointer_names_the_newest(
    registry: Registry, tmp_path: Path
) -> None:
    names = [publish(registry, make_model(tmp_path / text, text))[0] for text in "abc"]
    assert [version.version for version in registry.versions()] == names
    assert [name[:5] for name in names] == ["v0001", "v0002", "v0003"]
    pointer = json.loads(registry.storage.read_bytes("registry/pico/champion.json"))
    assert pointer == {"version": names[-1], "fingerprint": registry.versions()[-1].fingerprint}


def test_names_do_not_see_each_other(registry: Registry, tmp_path: Path) -> None:
    publish(registry, make_model(tmp_path / "model"))
    assert Registry(registry.storage, "pico-2").versions() == []
    assert Registry(registry.storage, "pic").versions() == []


def interrupt_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies after the first file, as by SIGKILL: nothing after it is executed."""
    upload = Storage.upload_folder

    def upload_one_file(self: Storage, local: Path, prefix: str) -> None:
        upload(self, local / "1_Pooling", f"{prefix}/1_Pooling")
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "upload_folder", upload_one_file)


def test_an_interrupted_publication_is_invisible_and_the_next_one_succeeds(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    with monkeypatch.context() as patch:
        interrupt_upload(patch)
        with pytest.raises(KeyboardInterrupt):
            publish(registry, model)
    assert registry.versions() == []
    assert not registry.storage.exists("registry/pico/champion.json")
    name, is_new = publish(registry, model)
    assert (name[:5], is_new) == ("v0002", True)
    assert [version.version for version in registry.versions()] == [name]


def test_an_abandoned_upload_is_removed_and_its_number_is_not_used_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_upload(patch)
        with pytest.raises(KeyboardInterrupt):
            publish(registry, make_model(tmp_path / "a", "a"))
    monkeypatch.setattr(registry_module, "ABANDONED_AFTER", timedelta(0))
    name, _ = publish(registry, make_model(tmp_path / "b", "b"))
    assert name.startswith("v0002")
    left = registry.storage.list("registry/pico/versions")
    assert {path.split("/")[3] for path in left} == {name}
    assert registry.verify(name) == []


DYING_PUBLISHER = """
import shutil, sys, threading
from pathlib import Path
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_storage

def stop_halfway(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:1])
    print("copying", flush=True)
    threading.Event().wait()

shutil.copyfile = stop_halfway
model = Path(sys.argv[1])
registry = Registry(open_storage(sys.argv[2], None), "pico")
registry.publish(model, fingerprint=fingerprint_folder(model), mean=0.5, scores={}, run={})
"""


def test_what_a_publisher_killed_inside_a_copy_left_is_removed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL, after which no handler removes the beginning of the file."""
    command = [sys.executable, "-c", DYING_PUBLISHER, str(make_model(tmp_path / "a", "a"))]
    with subprocess.Popen(
        [*command, registry.storage.url],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    ) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "copying\n"
        publisher.kill()
    assert len(list((tmp_path / "store").rglob(".partial-*"))) == 1
    monkeypatch.setattr(registry_module, "ABANDONED_AFTER", timedelta(0))
    name, _ = publish(registry, make_model(tmp_path / "b", "b"))
    assert not list((tmp_path / "store").rglob(".partial-*"))
    versions = tmp_path / "store" / "registry" / "pico" / "versions"
    assert [path.name for path in versions.iterdir()] == [name]


def test_a_publisher_whose_claim_was_cleared_away_does_not_commit(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = make_model(tmp_path / "slow", "slow"), make_model(tmp_path / "quick", "quick")
    upload = Storage.upload_folder

    def upload_after_another(self: Storage, local: Path, prefix: str) -> None:
        monkeypatch.setattr(Storage, "upload_folder", upload)
        publish(registry, quick)
        upload(self, local, prefix)

    monkeypatch.setattr(registry_module, "ABANDONED_AFTER", timedelta(0))
    monkeypatch.setattr(Storage, "upload_folder", upload_after_another)
    with pytest.raises(StageError, match=r"v0001-\w+ outlived its claim .* publish again"):
        publish(registry, slow)
    assert [version.fingerprint for version in registry.versions()] == [fingerprint_folder(quick)]


def test_two_publishers_at_once_never_share_a_number(registry: Registry, tmp_path: Path) -> None:
    models = [make_model(tmp_path / str(number), str(number)) for number in range(8)]
    start = threading.Barrier(len(models))

    def publish_together(model: Path) -> None:
        start.wait(10)
        publish(registry, model)

    threads = [threading.Thread(target=publish_together, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    versions = registry.versions()
    assert len({version.version[:5] for version in versions}) == len(models)
    assert {version.fingerprint for version in versions} == set(map(fingerprint_folder, models))
    assert all(registry.verify(version.version) == [] for version in versions)


def test_verify_names_the_altered_and_the_missing_file(registry: Registry, tmp_path: Path) -> None:
    name, _ = publish(registry, make_model(tmp_path / "model"))
    stored = Path(registry.address(name))
    (stored / "model.safetensors").write_text("weighty")
    (stored / "1_Pooling" / "config.json").unlink()
    missing, altered = registry.verify(name)
    assert missing.endswith("1_Pooling/config.json is missing")
    assert altered.endswith("model.safetensors differs from its hash in manifest.json")


def test_a_withdrawn_version_is_published_no_more(registry: Registry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    name, _ = publish(registry, model)
    (Path(registry.address(name)) / "manifest.json").unlink()
    assert registry.versions() == []
    assert publish(registry, model)[0][:5] == "v0002"


def test_a_broken_manifest_is_named_with_what_to_do(registry: Registry, tmp_path: Path) -> None:
    name, _ = publish(registry, make_model(tmp_path / "model"))
    (Path(registry.address(name)) / "manifest.json").write_text('{"version": 1')
    with pytest.raises(StageError, match=rf"{name}/manifest\.json is no manifest .* withdraw"):
        registry.versions()


def test_what_else_lies_among_the_claims_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    registry.storage.write_bytes("registry/pico/claims/note v7", b"mine")
    assert publish(registry, make_model(tmp_path / "model"))[0][:5] == "v0001"
    assert registry.storage.read_bytes("registry/pico/claims/note v7") == b"mine"


def test_a_store_and_files_in_cyrillic_publish_and_read_back(tmp_path: Path) -> None:
    model = make_model(tmp_path / "модель")
    (model / "словарь.txt").write_text("Тула")
    registry = Registry(open_storage(str(tmp_path / "Склад №1"), None), "pico")
    name, _ = publish(registry, model)
    assert registry.verify(name) == []
    registry.download(registry.read(name), tmp_path / "назад")
    assert fingerprint_folder(tmp_path / "назад") == fingerprint_folder(model)
