"""The examples of a training as memory-mapped tables, one per source and task.

Parquet has no way to a single row, so the shards are copied once, one at a time, into Arrow files
that the operating system maps: a corpus takes disk, and memory only for the shard in hand.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.training.data.groups import string_hashes
from model.writing import writing
from tasks.contract.records import EXAMPLE_SCHEMA, read_shards
from tasks.contract.stage import atomic_folder, read_json, write_json
from tasks.training.checkpoint_key import checkpoint_key

KEPT = [
    *("id", "query", "positives", "positive_scores", "negatives", "negative_scores"),
    *("label", "score"),
]
COLUMNS = ["task", "source", *KEPT]
SOURCES = "sources.json"
"""Names of all sources that have examples, those that were not asked for too."""

Tables = dict[str, dict[str, pa.Table]]
"""Source, then task, to its rows."""


def spool_corpus(corpora: Path, names: list[str], examples: list[Path], mined: Path | None) -> Path:
    """Write the rows of these sources as Arrow files, unless an earlier run has; their folder.

    Args:
        corpora: Where corpora of this stage are kept; others than the one asked for are removed.
        names: Sources to be kept.
        examples: Table folders with EXAMPLE_SCHEMA.
        mined: Table folder whose rows replace those of equal id; None replaces nothing. Rows of an
            id that is nowhere in `examples` are left out.
    """
    inputs = [*examples, *([] if mined is None else [mined])]
    target = corpora / checkpoint_key({"sources": sorted(names)}, inputs)
    if target.exists():
        return target
    if corpora.exists():
        shutil.rmtree(corpora)
    with atomic_folder(target) as folder, ExitStack() as open_files:
        spool = _Spool(folder, names, open_files)
        for rows in _replaced(examples, mined):
            spool.append(rows)
        write_json(folder / SOURCES, sorted(spool.present))
    return target


def open_corpus(folder: Path) -> tuple[Tables, list[str]]:
    """The tables of a folder of `spool_corpus`, mapped, and the names of all known sources."""
    tables: Tables = {}
    for path in sorted(folder.glob("*.arrow")):
        source, _, task = path.stem.rpartition(".")
        tables.setdefault(source, {})[task] = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return tables, read_json(folder / SOURCES)


class _Spool:
    """One open Arrow file per source and task."""

    def __init__(self, folder: Path, names: list[str], open_files: ExitStack) -> None:
        self._folder = folder
        self._names = names
        self._open_files = open_files
        self._writers: dict[Path, pa.ipc.RecordBatchFileWriter] = {}
        self.present: set[str] = set()

    def append(self, rows: pa.Table) -> None:
        """Sort the rows of a shard into the files."""
        found = rows.group_by(["source", "task"]).aggregate([]).to_pylist()
        for kind in found:
            source, task = kind["source"], kind["task"]
            self.present.add(source)
            if source not in self._names:
                continue
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
