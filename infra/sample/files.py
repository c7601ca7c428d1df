"""Writes records as JSON Lines, CSV or Parquet, byte for byte the same on every run."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Value = str | int | float | list[int] | list[str]
Records = Sequence[Mapping[str, Value]]


def write_jsonl(path: Path, records: Records) -> None:
    """One JSON object per line, UTF-8."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_csv(path: Path, records: Records) -> None:
    """Comma-separated with a header; fields are quoted where needed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def write_parquet(path: Path, records: Records) -> None:
    """Parquet with zstd; column types are inferred from the values."""
    columns = {key: [record[key] for record in records] for key in records[0]}
    table = pa.table({key: pa.array(values) for key, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", version="2.6", store_schema=False)


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one by renaming."""
    old = target.with_name(target.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    if old.exists():
        shutil.rmtree(old)


def task_card(name: str, configs: dict[str, list[str]], text: str) -> str:
    """README.md of a benchmark task: the YAML header that `datasets` reads, and a note.

    Args:
        name: Name of the task.
        configs: Splits of every config; the config named "default" is the default one.
        text: What the columns mean.

    Returns:
        The text of the file.
    """
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines.append(f"- config_name: {config}")
        if config == "default":
            lines.append("  default: true")
        lines.append("  data_files:")
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    lines += ["---", "", f"# {name}", "", text, ""]
    note = "Made by infra/sample from its own fact tables. Licence: Apache-2.0."
    return "\n".join([*lines, note, ""])
