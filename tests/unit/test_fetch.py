"""A published model on its way back: whole, as it was published, or not at all."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import fetch as fetch_module
from tasks.contract.stage import StageError
from tasks.fetch import fetch
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_storage
from tests.unit.test_registry import RUN, files_below, make_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """With two versions."""
    found = Registry(open_storage(str(tmp_path / "store"), None), "pico")
    for weights in ("old", "new"):
        model = make_model(tmp_path / weights, weights)
        found.publish(
            model, fingerprint=fingerprint_folder(model), mean=0.5, scores={}, run=RUN
        )  # fmt: skip
    return found


@pytest.mark.parametrize(("name", "weights"), [(None, "new"), ("v0001", "old"), ("v0002", "new")])
def test_a_version_comes_back_as_it_was(
    registry: Registry, tmp_path: Path, name: str | None, weights: str
) -> None:
    folder = fetch(registry, name, tmp_path / "out" / "model")
    assert files_below(folder) == ["1_Pooling/config.json", "model.safetensors"]
    assert fingerprint_folder(folder) == fingerprint_folder(tmp_path / weights)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def stored(registry: Registry) -> Path:
    return Path(registry.address(registry.versions()[-1].version))


def edit_manifest(registry: Registry, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = stored(registry) / "manifest.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))


def test_a_changed_file_is_named_and_nothing_is_left(registry: Registry, tmp_path: Path) -> None:
    (stored(registry) / "model.safetensors").write_text("evil")
    with pytest.raises(StageError, match=r"model\.safetensors differ from .* Do not load"):
        fetch(registry, None, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_file_is_named_and_nothing_is_left(registry: Registry, tmp_path: Path) -> None:
    (stored(registry) / "1_Pooling" / "config.json").unlink()
    with pytest.raises(StageError, match=r"1_Pooling/config\.json does not exist"):
        fetch(registry, None, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_put_beside_the_others_stays_where_it_is(registry: Registry, tmp_path: Path) -> None:
    (stored(registry) / "modeling_evil.py").write_text("raise SystemExit")
    folder = fetch(registry, None, tmp_path / "model")
    assert "modeling_evil.py" not in files_below(folder)


@pytest.mark.parametrize("path", ["../../.bashrc", "/etc/passwd", "", 7, None])
def test_a_manifest_writes_nothing_outside_the_folder(
    registry: Registry, tmp_path: Path, path: object
) -> None:
    edit_manifest(registry, lambda content: content["files"][0].update(path=path))
    with pytest.raises(StageError, match=r"manifest\.json names .*expected a path relative"):
        fetch(registry, "v0002", tmp_path / "model")


@pytest.mark.parametrize("version", ["/outside", "../../outside", "v0001-00000000", 7])
def test_a_manifest_that_bears_another_version_names_no_folder(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: object
) -> None:
    monkeypatch.chdir(tmp_path)
    if version == "/outside":
        version = str(tmp_path / "outside")
    edit_manifest(registry, lambda content: content.update(version=version))
    with pytest.raises(StageError, match=r"calls its version .*expected 'v0002-.*withdraw"):
        fetch(registry, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "store"]


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_modules_that_lie_elsewhere_are_refused(
    registry: Registry, tmp_path: Path, path: str
) -> None:
    model = make_model(tmp_path / "evil", "evil")
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": path}]
    (model / "modules.json").write_text(json.dumps(modules))
    registry.publish(
        model, fingerprint=fingerprint_folder(model), mean=0.5, scores={}, run=RUN
    )  # fmt: skip
    with pytest.raises(StageError, match=r"modules\.json names .*expected a path relative"):
        fetch(registry, None, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_version_is_answered_with_those_there_are(registry: Registry) -> None:
    with pytest.raises(StageError, match=r"no version v0009; published: v0001-\w+, v0002-"):
        fetch(registry, "v0009", None)
    with pytest.raises(StageError, match="other has no version; published: none yet"):
        fetch(Registry(registry.storage, "other"), None, None)


def test_a_folder_that_exists_is_not_replaced(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(StageError, match=r"mine exists: name another folder by --to"):
        fetch(registry, None, tmp_path / "mine")


def test_the_command_prints_the_folder(
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "infra" / "profiles" / "sample.yaml", tmp_path / "params.yaml")
    monkeypatch.setattr(sys, "argv", ["fetch", "--name", "pico"])
    fetch_module.main()
    printed = capsys.readouterr().out.strip()
    assert printed == f"models/{registry.versions()[-1].version}"
    assert Path(printed, "model.safetensors").read_text() == "new"
