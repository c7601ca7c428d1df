"""A folder in which `python -m tasks.pretrain` trains a pico model in a process of its own."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from tasks.contract.records import EXAMPLE_SCHEMA, write_table
from tests.fork_server import ROOT, Forked, start
from tests.unit.file_limit import NO_BYTECODE

PROFILE = ROOT / "infra" / "profiles" / "pico.yaml"


def write_workspace(folder: Path, model: Path, **training: Any) -> None:
    """Tables, a base model and params.yaml, with `training` merged into pretrain.training."""
    rows = [
        {
            "id": f"r{row}", "task": "retrieval", "source": "titles", "lang": "ru",
            "query": f"вопрос номер {row}", "positives": [f"ответ {row} на вопрос {row * 7}"],
            "negatives": [], "negative_scores": None, "label": None, "score": None,
        }
        for row in range(40)
    ]  # fmt: skip
    write_table(
        pa.Table.from_pylist(rows, EXAMPLE_SCHEMA), folder / "artifacts" / "ingest" / "examples"
    )
    write_table(
        pa.Table.from_pylist([row | {"source": "synthetic"} for row in rows], EXAMPLE_SCHEMA),
        folder / "artifacts" / "synthesize" / "examples",
    )
    (folder / "artifacts" / "prune").mkdir()
    (folder / "artifacts" / "prune" / "model").symlink_to(model)
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    content["pretrain"]["training"] |= training
    content["compute"] |= {"precision": "fp32"}
    (folder / "params.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def set_processes(folder: Path, processes: int) -> None:
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["compute"] |= {"device": "cpu", "threads": 1, "processes": processes}
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def start_pretrain(folder: Path, file_limit_bytes: int | None = None) -> Forked:
    """`python -m tasks.pretrain` in `folder`; none of its files may grow beyond the limit."""
    return start(
        "tasks.pretrain",
        cwd=folder,
        environment=os.environ | {"PYTHONPATH": str(ROOT)} | NO_BYTECODE,
        pipe_stderr=True,
        file_limit_bytes=file_limit_bytes,
    )
