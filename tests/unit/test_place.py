"""`make data`: the sample goes into a free data/ and never over data of somebody's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.sample import place
from infra.sample.place import NotOursError, tree_hash

SAMPLE = {"train/a.jsonl": '{"text": "Самовар"}\n', "benchmark/Task/test.parquet": "rows"}


def write(folder: Path, files: dict[str, str] = SAMPLE) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose data.dvc names the sample, before `make data`; DVC is only watched."""
    write(tmp_path / "made")
    record(tmp_path, tree_hash(tmp_path / "made"))
    shutil.rmtree(tmp_path / "made")
    monkeypatch.chdir(tmp_path)

    def commit(command: list[str], **_: object) -> None:
        assert command[1:] == ["-m", "dvc", "add", "--quiet", "data"]
        record(tmp_path, tree_hash(tmp_path / "data"))

    monkeypatch.setattr(place.subprocess, "run", commit)
    return tmp_path


def record(root: Path, tree: str | None) -> None:
    (root / "data.dvc").write_text(
        yaml.safe_dump({"outs": [{"md5": f"{tree}.dir", "path": "data"}]})
    )


def test_a_free_checkout_gets_it_and_again_after_it_was_removed(checkout: Path) -> None:
    for _ in range(2):
        place.place(write)
        assert (checkout / "data/train/a.jsonl").read_text() == SAMPLE["train/a.jsonl"]
        shutil.rmtree(checkout / "data")
    (checkout / "data").mkdir()
    place.place(write)
    assert (checkout / "data/train").is_dir()


def test_a_second_call_generates_nothing(checkout: Path) -> None:
    place.place(write)
    place.place(lambda _: pytest.fail("generated again"))


@pytest.mark.parametrize("name", ["corpus/mine.csv", "train/a.jsonl", "train/mine.csv"])
def test_data_of_ones_own_are_left_alone(checkout: Path, name: str) -> None:
    place.place(write)
    write(checkout / "data", {name: "mine"})
    recorded = (checkout / "data.dvc").read_bytes()
    with pytest.raises(NotOursError, match="are not the sample corpus"):
        place.place(write)
    assert (checkout / "data" / name).read_text() == "mine"
    assert (checkout / "data.dvc").read_bytes() == recorded


def test_a_record_of_other_data_is_left_alone_where_they_are_not_fetched(checkout: Path) -> None:
    record(checkout, "0" * 32)
    with pytest.raises(NotOursError, match="make pull"):
        place.place(write)
    assert not (checkout / "data").exists()
    assert "0" * 32 in (checkout / "data.dvc").read_text()


def test_where_there_is_neither_data_nor_record_both_are_made(checkout: Path) -> None:
    (checkout / "data.dvc").unlink()
    place.place(write)
    assert (checkout / "data/train").is_dir()
    assert (checkout / "data.dvc").exists()


def test_an_older_sample_gives_way_to_that_of_new_code(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.place(write)
    monkeypatch.setattr(place, "_code_hash", lambda: "newer")
    place.place(lambda folder: write(folder, SAMPLE | {"train/b.csv": "new"}))
    assert (checkout / "data/train/b.csv").read_text() == "new"


def test_what_a_killed_call_left_is_known_as_a_sample(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place.place(write)
    monkeypatch.setattr(place, "_code_hash", lambda: "newer")
    with monkeypatch.context() as patch:
        patch.setattr(place.subprocess, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            place.place(lambda folder: write(folder, SAMPLE | {"train/b.csv": "new"}))
    assert (checkout / "data/train/b.csv").exists()
    place.place(write)
    assert not (checkout / "data/train/b.csv").exists()
    assert len(json.loads(Path(place.PLACED).read_text())["trees"]) == 1


def test_the_hash_is_that_of_dvc(tmp_path: Path) -> None:
    write(tmp_path / "data")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*dvc, "add", "-q", "data"], cwd=tmp_path, check=True)
    [out] = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"]
    assert out["md5"] == f"{tree_hash(tmp_path / 'data')}.dir"
