"""Which files a declared path means."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from tasks.contract.stage import StageError
from tasks.ingest.locations import benchmark_files, source_files
from tasks.params.data import Fields, Source


def source(path: str, kind: str = "jsonl") -> Source:
    return Source.model_validate(
        {"path": path, "format": kind, "task": "documents", "fields": Fields(text="text")}
    )


def names(root: Path, path: str, kind: str = "jsonl") -> list[str]:
    return [file.name for file in source_files("s", source(path, kind), str(root), None)]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def test_a_relative_path_starts_from_the_corpus(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jsonl")
    assert names(tmp_path, "a/x.jsonl") == ["a/x.jsonl"]


def test_a_glob_gives_its_files_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "a/2.jsonl", "a/10.jsonl", "a/1.jsonl", "a/1.txt")
    assert names(tmp_path, "a/*.jsonl") == ["a/1.jsonl", "a/10.jsonl", "a/2.jsonl"]


def test_names_of_an_absolute_path_do_not_tell_the_machine(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/1.jsonl")
    assert names(Path("/nowhere"), f"{tmp_path}/a/*/*.jsonl") == ["b/1.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "x[1].jsonl")
    assert names(tmp_path, "x[1].jsonl") == ["x[1].jsonl"]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_folder_whose_name_looks_like_a_glob_is_no_pattern(
    tmp_path: Path, absolute: bool
) -> None:
    root = tmp_path / "news[1]"
    touch(root, "a/1.jsonl", "a/2.jsonl")
    touch(tmp_path, "news1/a/3.jsonl")
    path = f"{root}/a/*.jsonl" if absolute else "a/*.jsonl"
    assert names(root, path) == (["1.jsonl", "2.jsonl"] if absolute else ["a/1.jsonl", "a/2.jsonl"])
    assert names(tmp_path, "news[1]/a/*.jsonl") == ["news[1]/a/1.jsonl", "news[1]/a/2.jsonl"]


def test_a_file_name_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"a\xff.jsonl"))
    with pytest.raises(
        StageError, match=r"file name b'.*a\\xff\.jsonl' is not valid UTF-8.*rename"
    ):
        names(tmp_path, "*.jsonl")


@pytest.mark.parametrize("path", ["nothing.jsonl", "*.parquet"])
def test_a_path_without_files_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(StageError, match=r"source s: nothing at .*correct its path"):
        names(tmp_path, path)


def test_a_folder_where_a_file_is_wanted_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jsonl")
    with pytest.raises(StageError, match="is a folder; format jsonl needs a file"):
        names(tmp_path, "a")


def test_a_saved_dataset_gives_its_files(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["а", "б", "в"]}).save_to_disk(str(tmp_path / "d"), num_shards=2)
    assert names(tmp_path, "d", "datasets") == [
        "d/data-00000-of-00002.arrow",
        "d/data-00001-of-00002.arrow",
    ]


def test_of_a_saved_dataset_with_splits_only_train_is_read(tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": ["а"]})
    DatasetDict({"test": data, "train": data}).save_to_disk(str(tmp_path / "d"))
    assert names(tmp_path, "d", "datasets") == ["d/train/data-00000-of-00001.arrow"]


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"_data_files": 1, "splits": 1}', "\xff"])
def test_a_broken_file_of_a_saved_dataset_is_named(tmp_path: Path, name: str, content: str) -> None:
    touch(tmp_path, f"d/{name}")
    (tmp_path / "d" / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(StageError, match=rf"d/{name} is broken .*save the dataset again"):
        names(tmp_path, "d", "datasets")


@pytest.mark.parametrize("outside", ["../secret.arrow", "/etc/passwd"])
def test_a_saved_dataset_names_no_file_outside_its_folder(tmp_path: Path, outside: str) -> None:
    (tmp_path / "set").mkdir()
    state = {"_data_files": [{"filename": outside}]}
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(StageError, match=r"state\.json names .*expected a path relative"):
        names(tmp_path, "set", "datasets")
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": [outside]}))
    with pytest.raises(StageError, match=r"dataset_dict\.json names .*expected a path relative"):
        names(tmp_path, "set", "datasets")


def test_of_a_hub_folder_only_train_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "d/README.md", "d/data/train-0.parquet", "d/data/test-0.parquet")
    assert names(tmp_path, "d", "datasets") == ["d/data/train-0.parquet"]


def test_of_a_hub_folder_without_train_all_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "d/corpus/b.parquet", "d/corpus/a.parquet")
    assert names(tmp_path, "d", "datasets") == ["d/corpus/a.parquet", "d/corpus/b.parquet"]


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "d/x.txt")
    with pytest.raises(StageError, match="d is no `datasets` folder"):
        names(tmp_path, "d", "datasets")


def test_benchmark_tables_are_grouped_by_task(tmp_path: Path) -> None:
    for path in ("B/default/test.parquet", "A/corpus/test.parquet"):
        (tmp_path / path).parent.mkdir(parents=True)
        pq.write_table(pa.table({"text": ["а"]}), tmp_path / path)
    touch(tmp_path, "A/README.md", "README.md", "A/.cache/x.parquet", "A/dataset_infos.json")
    found = benchmark_files(str(tmp_path), None)
    assert {task: [file.name for file in files] for task, files in found.items()} == {
        "A": ["A/corpus/test.parquet"],
        "B": ["B/default/test.parquet"],
    }


def test_a_benchmark_task_without_a_table_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "A/README.md", "B/x.parquet")
    with pytest.raises(StageError, match=r"no table in the task folders \['A'\]"):
        benchmark_files(str(tmp_path), None)


def test_a_missing_benchmark_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no task folders; expected"):
        benchmark_files(str(tmp_path / "nothing"), None)
