"""The examples of all trainings as memory-mapped tables, one per source and task.

Parquet has no way to a single row, so the shards are copied once, one at a time, into Arrow files
that the operating system maps: a corpus takes disk, and memory only for the shard in hand.
"""

import fcntl
import glob
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.training.data.groups import string_hashes
from model.writing import writing
from tasks.contract.records import EXAMPLE_SCHEMA, read_shards
from tasks.contract.stage import atomic_folder, read_json, write_json
from tasks.training.checkpoint_key import folder_hashes

KEPT = [
    *("id", "query", "positives", "positive_scores", "negatives", "negative_scores"),
    *("label", "score"),
]
COLUMNS = ["task", "source", *KEPT]
SOURCES = "sources.json"
"""Names of all sources that have examples."""
LOCK = "lock"

Tables = dict[str, dict[str, pa.Table]]
"""Source, then task, to its rows."""


def open_corpus(
    corpora: Path, names: Iterable[str], examples: list[Path], mined: Path | None
) -> tuple[Tables, list[str]]:
    """Tables of these sources, mapped, and the names of all sources that have rows.

    The files are written once for all trainings of the same examples, and others are removed; what
    another process has mapped of those stays with it.

    Args:
        corpora: Where the files are kept.
        names: Sources that are wanted.
        examples: Table folders with EXAMPLE_SCHEMA.
        mined: Table folder whose rows replace those of equal id; None replaces nothing. Rows of an
            id that is nowhere in `examples` are left out.
    """
    with _alone(corpora):
        folder = corpora / _key([*examples, *([] if mined is None else [mined])])
        if not folder.exists():
            _remove_all(corpora)
            _write(folder, examples, mined)
        present = read_json(folder / SOURCES)
        return {name: _mapped(folder, name) for name in names if name in present}, present


def remove_corpora(corpora: Path) -> None:
    """Free the disk; trainings that have mapped something go on with it."""
    with _alone(corpora):
        _remove_all(corpora)


@contextmanager
def _alone(corpora: Path) -> Iterator[None]:
    """Hold the folder while files are looked for, written and mapped."""
    corpora.mkdir(parents=True, exist_ok=True)
    with (corpora / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_all(corpora: Path) -> None:
    for path in corpora.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _key(inputs: list[Path]) -> str:
    """Equal for equal examples, written by the same code."""
    content = {"code": Path(__file__).read_text(encoding="utf-8"), "arrow": pa.__version__}
    content |= {str(folder): folder_hashes(folder) for folder in inputs}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(target: Path, examples: list[Path], mined: Path | None) -> None:
    with atomic_folder(target) as folder, ExitStack() as open_files:
        spool = _Spool(folder, open_files)
        for rows in _replaced(examples, mined):
            spool.append(rows)
        write_json(folder / SOURCES, sorted(spool.present))


def _mapped(folder: Path, source: str) -> dict[str, pa.Table]:
    return {
        path.stem.removeprefix(f"{source}."): pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for path in sorted(folder.glob(f"{glob.escape(source)}.*.arrow"))
        if path.stem.rpartition(".")[0] == source
    }


class _Spool:
    """One open Arrow file per source and task."""

    def __init__(self, folder: Path, open_files: ExitStack) -> None:
        self._folder = folder
        self._open_files = open_files
        self._writers: dict[Path, pa.ipc.RecordBatchFileWriter] = {}
        self.present: set[str] = set()

    def append(self, rows: pa.Table) -> None:
        """Sort the rows of a shard into the files."""
        found = rows.group_by(["source", "task"]).aggregate([]).to_pylist()
        for kind in found:
            source, task = kind["source"], kind["task"]
            self.present.add(source)
            is_own = (pc.field("source") == source) & (pc.field("task") == task)
            own = rows if len(found) == 1 else rows.filter(is_own)
            # one chunk a shard: a training looks rows up chunk by chunk
            self._write(self._folder / f"{source}.{task}.arrow", own.select(KEPT).combine_chunks())

    def _write(self, path: Path, rows: pa.Table) -> None:
        if path not in self._writers:
            self._writers[path] = self._open_files.enter_context(_arrow_file(path))
        with writing(path):
            self._writers[path].write_table(rows)


@contextmanager
def _arrow_file(path: Path) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    schema = pa.schema([EXAMPLE_SCHEMA.field(name) for name in KEPT])
    with writing(path):
        writer = pa.ipc.new_file(str(path), schema)
    try:
        yield writer
    finally:
        with writing(path):
            writer.close()


def _replaced(examples: list[Path], mined: Path | None) -> Iterator[pa.Table]:
    """Shards of the examples without the rows that were mined for, then the mined rows."""
    shards = (shard for folder in examples for shard in read_shards(folder, COLUMNS))
    if mined is None:
        yield from shards
        return
    mined_ids = np.unique(
        np.concatenate([_id_hashes(shard) for shard in read_shards(mined, ["id"])])
    )
    is_found = np.zeros(len(mined_ids), dtype=bool)
    for shard in shards:
        place, is_mined = _look_up(_id_hashes(shard), mined_ids)
        is_found[place[is_mined]] = True
        yield shard.filter(pa.array(~is_mined))
    for shard in read_shards(mined, COLUMNS):
        place, is_known = _look_up(_id_hashes(shard), mined_ids)
        is_known[is_known] = is_found[place[is_known]]
        yield shard.filter(pa.array(is_known))


def _id_hashes(shard: pa.Table) -> np.ndarray:
    return string_hashes(shard["id"].combine_chunks())


def _look_up(hashes: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each hash in the sorted array, and whether it stands there."""
    place = np.searchsorted(among, hashes)
    inside = place < len(among)
    is_found = np.zeros(len(hashes), dtype=bool)
    is_found[inside] = among[place[inside]] == hashes[inside]
    return place, is_found
