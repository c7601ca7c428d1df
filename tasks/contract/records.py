"""The data contract: table schemas, sharded Parquet with a manifest, and the forms of a text.

A table folder holds `part-00000.parquet`, ... and `manifest.json` with rows, bytes and the sha256
of every shard, so that a truncated or foreign file is found before it is used.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from model.writing import writing
from tasks.contract.stage import StageError, read_json, write_json

CLASS_TASKS = ("classification", "clustering")
"""Tasks whose rows are texts with labels."""
EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("lang", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string()), nullable=False),
        pa.field("positive_scores", pa.list_(pa.float32())),
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
        pa.field("negative_scores", pa.list_(pa.float32())),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
    ]
)
DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("id", "source", "lang", "title", "text")
    ]
)
EVALUATION_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("task", "text")]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
    ]
)

MANIFEST = "manifest.json"

# Whitespace controls are left to the whitespace step, the joiners U+200C and U+200D to the emoji
# and scripts that need them; lone surrogates cannot be stored as UTF-8.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]+"
)
_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")


def write_table(table: pa.Table, folder: Path, *, shard_rows: int = 100_000) -> None:
    """Write `table` as Parquet shards and their manifest; equal tables give equal bytes.

    Args:
        table: Any table; an empty one gives one shard of no rows, so that its schema survives.
        folder: Created; must hold no manifest yet.
        shard_rows: Rows per shard.

    Raises:
        StageError: The folder holds a table already.
        OSError: The disk is full or not writable; the message names the shard.
    """
    if (folder / MANIFEST).exists():
        raise StageError(f"{folder} holds a table already: remove it or write to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, max(table.num_rows, 1), shard_rows)):
        rows = table.slice(start, shard_rows)
        path = folder / f"part-{number:05d}.parquet"
        with writing(path):
            pq.write_table(rows, path, compression="zstd")
        shards.append({"name": path.name, "rows": rows.num_rows, "sha256": _sha256(path)})
    size_bytes = sum((folder / shard["name"]).stat().st_size for shard in shards)
    write_json(folder / MANIFEST, {"rows": table.num_rows, "bytes": size_bytes, "shards": shards})


def read_table(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a table folder back, in the order it was written.

    Args:
        folder: A folder of `write_table`.
        columns: Columns to read; None reads all.

    Raises:
        StageError: The manifest is missing or broken, a shard is missing or altered, or a column
            does not exist.
    """
    return pa.concat_tables(read_shards(folder, columns))


def read_shards(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Read a table folder back shard by shard, one in memory at a time.

    Args:
        folder: A folder of `write_table`.
        columns: Columns to read; None reads all.

    Raises:
        StageError: As `read_table`; what concerns a shard, or the number of rows, when it is
            reached.
    """
    manifest = read_json(folder / MANIFEST)
    try:
        shards = [(folder / shard["name"], shard["sha256"]) for shard in manifest["shards"]]
        expected = int(manifest["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(f"{folder / MANIFEST} is no manifest: run its stage again") from error
    rows = 0
    for path, sha256 in shards:
        table = _read_shard(path, sha256, columns)
        rows += table.num_rows
        yield table
    if rows != expected:
        raise StageError(f"{folder} holds {rows} rows, its manifest says {expected}")


def _read_shard(path: Path, sha256: str, columns: list[str] | None) -> pa.Table:
    if not path.is_file():
        raise StageError(f"{path} is missing but listed in the manifest: run its stage again")
    if _sha256(path) != sha256:
        raise StageError(f"{path} is truncated or altered (manifest differs): run its stage again")
    with pq.ParquetFile(path) as file:
        unknown = sorted(set(columns or []) - set(file.schema_arrow.names))
        if unknown:
            raise StageError(f"{path} has no columns {unknown}; found {file.schema_arrow.names}")
        table = file.read(columns)
    return table if columns is None else table.select(columns)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_id(*parts: str) -> str:
    """Hash of the parts in order, 32 hexadecimal digits (xxh3, 128 bits).

    The length of each part is hashed with it: ("a", "bc") and ("ab", "c") differ.
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def normalise_text(text: str) -> str:
    """The form in which every text is stored; applying it twice changes nothing.

    Unicode NFC; invisible characters and lone surrogates removed; a run of spaces, of no width
    too, and tabs becomes one space, a run that holds a line break one line feed; no whitespace at
    either end.
    """
    if not text.isprintable():
        text = _INVISIBLE.sub("", text).replace("\u200b", " ")
    lines = unicodedata.normalize("NFC", text).splitlines()
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))


def match_key(text: str) -> str:
    """Letters and digits of a text in one case: equal keys mean the same text for us.

    Compatibility forms are unified (NFKC) and the Russian `yo` counts as `ye`; empty for a text
    without letters and digits.
    """
    return _NO_LETTER_OR_DIGIT.sub("", fold(text))


def fold(text: str) -> str:
    """The text in one case and one compatibility form, with its words still apart."""
    return unicodedata.normalize("NFKC", text).casefold().replace("\u0451", "\u0435")
