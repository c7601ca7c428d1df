"""A corpus and a benchmark of a few rows, and the parameters that read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks.contract.records import read_table
from tasks.contract.stage import read_json
from tasks.ingest.__main__ import ingest
from tasks.params.load import load_params

PROFILE = Path(__file__).parents[3] / "infra" / "profiles" / "sample.yaml"
WORDS = [
    *("альфа", "бета", "гамма", "дельта", "эпсилон", "дзета", "эта", "тета"),
    *("йота", "каппа", "лямбда", "мю", "ню", "кси", "омикрон"),
]


class Corpus:
    """Sources and an evaluation task in a temporary folder, ready for the stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params: dict[str, Any] = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
        self.params["data"] = {"corpus": "corpus", "benchmark": "benchmark"}
        self.sources: dict[str, Any] = {}
        self.params["ingest"]["sources"] = self.sources
        self.params["ingest"]["development_fraction"] = 0.0
        self.params["ingest"]["max_overlap_share"] = 1.0
        (root / "corpus").mkdir()
        self.evaluate("Task", {"text": [" ".join(WORDS)]})
        self.jsonl("documents", "documents", [{"text": "документ об ином"}], text="text")
        rows = [{"q": f"вопрос {word}", "p": f"ответ на {word}"} for word in WORDS]
        self.jsonl("questions", "retrieval", rows, query="q", positive="p")

    def evaluate(self, task: str, columns: dict[str, Any], split: str = "test") -> None:
        """Write one split of an evaluation task."""
        path = self.root / "benchmark" / task / "default" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)

    def declare(self, name: str, path: str, kind: str, task: str, **fields: str) -> dict[str, Any]:
        """Declare a source whose language is Russian."""
        source = {"path": path, "format": kind, "task": task, "fields": fields, "lang": "ru"}
        self.sources[name] = source
        return source

    def jsonl(
        self, name: str, task: str, rows: list[dict[str, Any]], **fields: str
    ) -> dict[str, Any]:
        """Write and declare a JSONL source."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return self.raw(name, task, "jsonl", lines.encode(), **fields)

    def raw(self, name: str, task: str, kind: str, content: bytes, **fields: str) -> dict[str, Any]:
        """Write bytes and declare them as a source."""
        (self.root / "corpus" / f"{name}.{kind}").write_bytes(content)
        return self.declare(name, f"{name}.{kind}", kind, task, **fields)

    def save(self) -> Path:
        """Write params.yaml; the training stages name the first source of examples, if any."""
        names = [name for name, source in self.sources.items() if source["task"] != "documents"]
        names = names or ["synthetic"]
        chosen = dict.fromkeys(names[:1], 1.0)
        for section in ("pretrain", "finetune"):
            self.params[section]["sources"] = chosen
        self.params["mine"]["sources"] = names[:1]
        for variant in self.params["multitask"]["variants"].values():
            variant["sources"] = chosen
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(self.params, allow_unicode=True, sort_keys=False), "utf-8")
        return path

    def run(self) -> dict[str, Any]:
        """Run the stage and return its metrics."""
        ingest(load_params(self.save()))
        return read_json(self.root / "artifacts" / "ingest" / "metrics.json")

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of one table of the stage."""
        return read_table(self.root / "artifacts" / "ingest" / name).to_pylist()

    def refused(self, source: str) -> list[tuple[int, str]]:
        """Row and reason of each quarantined row of a source."""
        rows = [row for row in self.table("quarantine") if row["source"] == source]
        return [(row["row"], row["reason"]) for row in rows]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A corpus that passes: one document, 15 questions, one evaluation text of 15 words."""
    monkeypatch.chdir(tmp_path)
    return Corpus(tmp_path)


@pytest.fixture
def words() -> list[str]:
    """The 15 words of the evaluation text."""
    return list(WORDS)


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """Reads every file below a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read
