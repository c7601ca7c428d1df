"""The files of a source or of the benchmark: path, glob or `datasets` folder, local or on S3."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO

import fsspec

from tasks.contract.stage import StageError
from tasks.ingest.dialects import SEEN, Dialect, is_undecoded
from tasks.params.addresses import in_corpus
from tasks.params.data import Source
from tasks.store.storage import (
    fixed_folder,
    inner_path,
    matching,
    open_filesystem,
    storage_errors,
)

LAYOUTS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
NO_TABLES = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
"""What the hub and `datasets` put beside tables."""
COMPRESSIONS = (".gz", ".bz2", ".xz")

_TRAIN = re.compile(r"(^|[/_.-])train([/_.-]|$)")


@dataclass(frozen=True)
class Location:
    """One file to read."""

    filesystem: fsspec.AbstractFileSystem
    path: str
    """Full path in the file system."""
    name: str
    """Path relative to the folder it was declared under: the same on every machine."""
    layout: str
    """How to read it: a key of `readers.READERS` or `readers.TEXT_READERS`."""
    endpoint_url: str | None
    dialect: Dialect = SEEN
    """What is declared of its text."""

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes of the file; JSONL and CSV are decompressed where the name says .gz, .xz."""
        compression = "infer" if self.layout in {"jsonl", "csv"} else None
        with (
            storage_errors(self.filesystem.unstrip_protocol(self.path), self.endpoint_url),
            self.filesystem.open(self.path, "rb", compression=compression) as file,
        ):
            yield file  # pyright: ignore[reportReturnType]  # opened "rb": bytes


def source_files(
    name: str, source: Source, corpus: str, endpoint_url: str | None
) -> list[Location]:
    """Files of a declared source, sorted by path.

    Args:
        name: Name of the source, for messages.
        source: Its declaration.
        corpus: data.corpus, which relative paths start from.
        endpoint_url: Address of an S3 service other than AWS.

    Raises:
        StageError: The path does not exist, the glob matches nothing, or a folder is given where
            the format wants a file.
    """
    url = in_corpus(corpus, source.path)
    with storage_errors(url, endpoint_url):
        filesystem, full = open_filesystem(url, endpoint_url)
        paths = matching(filesystem, full)
        above = corpus if url != source.path else str(fixed_folder(filesystem, full))
        root = PurePosixPath(str(filesystem._strip_protocol(above)))
        if not paths:
            raise StageError(f"source {name}: nothing at {url}: correct its path")
        if source.format == "datasets":
            paths = sorted(file for path in paths for file in _dataset_files(filesystem, path))
        folders = [path for path in paths if filesystem.isdir(path)]
    if folders:
        raise StageError(
            f"source {name}: {folders[0]} is a folder; format {source.format} needs a file or a "
            "glob such as folder/*, or use format: datasets"
        )
    dialect = Dialect(source.encoding, source.separator)
    found = [_location(filesystem, path, root, source.format, endpoint_url) for path in paths]
    return [replace(location, dialect=dialect) for location in found]


def benchmark_files(benchmark: str, endpoint_url: str | None) -> dict[str, list[Location]]:
    """Table files of every evaluation task: name of the task's folder to its files, sorted.

    Raises:
        StageError: There is no task folder, or one without a table that can be read.
    """
    with storage_errors(benchmark, endpoint_url):
        filesystem, root = open_filesystem(benchmark, endpoint_url)
        found = sorted(filesystem.find(root)) if filesystem.isdir(root) else []
    tasks: dict[str, list[Location]] = {}
    for path in found:
        parts = PurePosixPath(path).relative_to(root).parts
        is_beside_tasks = len(parts) == 1
        if is_beside_tasks or any(part.startswith(".") for part in parts):
            continue
        files = tasks.setdefault(parts[0], [])
        if _layout(path) is not None and parts[-1] not in NO_TABLES:
            files.append(_location(filesystem, path, PurePosixPath(root), "", endpoint_url))
    empty = sorted(task for task, files in tasks.items() if not files)
    if not tasks or empty:
        what = f"no table in the task folders {empty}" if empty else "no task folders"
        raise StageError(
            f"data.benchmark {benchmark}: {what}; expected <task>/<config>/<split>.parquet, so "
            "that training rows can be compared with every evaluation text"
        )
    return tasks


def is_train_split(path: str) -> bool:
    """Whether the path says that the file belongs to a train split."""
    return _TRAIN.search(path) is not None


def _location(
    filesystem: fsspec.AbstractFileSystem,
    path: str,
    root: PurePosixPath,
    layout: str,
    endpoint_url: str | None,
) -> Location:
    name = str(PurePosixPath(path).relative_to(root))
    if is_undecoded(name):
        raise StageError(
            f"the file name {os.fsencode(path)!r} is not valid UTF-8, so no row can be named by "
            "it: rename the file"
        )
    if layout not in LAYOUTS.values():
        layout = _layout(path) or ""
    return Location(filesystem, path, name, layout, endpoint_url)


def _layout(path: str) -> str | None:
    suffixes = [suffix for suffix in PurePosixPath(path).suffixes if suffix not in COMPRESSIONS]
    return LAYOUTS.get(suffixes[-1]) if suffixes else None


def _dataset_files(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Files of a `save_to_disk` folder, or of one in the layout of the hub.

    Where the folder has a train split, the other splits are left alone: they are for testing.
    """
    if filesystem.exists(f"{folder}/dataset_dict.json"):
        splits = _read_list(filesystem, f"{folder}/dataset_dict.json", "splits")
        chosen = ["train"] if "train" in splits else sorted(splits)
        return [
            file for split in chosen for file in _dataset_files(filesystem, f"{folder}/{split}")
        ]
    if filesystem.exists(f"{folder}/state.json"):
        files = _read_list(filesystem, f"{folder}/state.json", "_data_files", "filename")
        return [f"{folder}/{name}" for name in files]
    tables = [str(path) for path in filesystem.find(folder) if str(path).endswith(".parquet")]
    train = [path for path in tables if is_train_split(path.removeprefix(folder))]
    if not tables:
        raise StageError(
            f"{folder} is no `datasets` folder: expected state.json and dataset_dict.json of "
            "save_to_disk, or Parquet files in the layout of the hub"
        )
    return train or tables


def _read_list(
    filesystem: fsspec.AbstractFileSystem, path: str, key: str, name: str | None = None
) -> list[str]:
    """The list of names under `key` of a JSON file; with `name`, that of each of its objects."""
    try:
        # bytes for one file; a dict only where the path is a pattern
        content = json.loads(filesystem.cat_file(path))[key]  # pyright: ignore[reportArgumentType]
        names = [item if name is None else item[name] for item in content]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{path} is broken ({error}): expected the JSON that Dataset.save_to_disk writes; "
            "save the dataset again, or fetch it again"
        ) from error
    return [str(inner_path(each, path)) for each in names]
