"""A corpus, a decoder and a benchmark in a real S3 service give what local folders give."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

from tasks.baseline.random_vectors import RandomVectors
from tasks.contract.records import write_table
from tasks.store.storage import open_storage
from tests.flows.s3 import KEYS, S3
from tests.flows.toy import ROOT, Toy

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.usefixtures("keys")]
CITIES = ["Тула", "Казань", "Омск", "Псков", "Рязань", "Тверь"]
RETRIEVAL = {"query": "q", "positive": "p"}


def rows(kind: str) -> list[dict[str, str]]:
    return [{"q": f"{kind}: где {city}", "p": f"{kind}: {city} на карте"} for city in CITIES]


def write_corpus(folder: Path) -> dict[str, Any]:
    """One source per format, a glob and a compressed file among them; their declarations."""
    (folder / "parts").mkdir(parents=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows("jsonl")]
    (folder / "parts" / "1.jsonl").write_text("".join(lines[:3]))
    (folder / "parts" / "2.jsonl.gz").write_bytes(gzip.compress("".join(lines[3:]).encode()))
    pq.write_table(pa.Table.from_pylist(rows("parquet")), folder / "pairs.parquet")
    cells = "".join(f"{row['q']},{row['p']}\n" for row in rows("csv"))
    (folder / "pairs.csv").write_text("q,p\n" + cells)
    Dataset.from_list(rows("saved")).save_to_disk(str(folder / "saved"), num_shards=2)
    (folder / "documents.jsonl").write_text(json.dumps({"text": "Документ о городах."}) + "\n")
    declared = {"text": ("documents.jsonl", "jsonl"), "lines": ("parts/*.jsonl*", "jsonl")}
    declared |= {"table": ("pairs.parquet", "parquet"), "cells": ("pairs.csv", "csv")}
    declared |= {"saved": ("saved", "datasets")}
    return {
        name: {
            "path": path,
            "format": kind,
            "task": "documents" if name == "text" else "retrieval",
            "fields": {"text": "text"} if name == "text" else RETRIEVAL,
            "lang": "ru",
        }
        for name, (path, kind) in declared.items()
    }


def write_benchmark(folder: Path) -> None:
    """One retrieval task in the layout of the hub."""
    numbers = range(len(CITIES))
    configs = {
        "corpus": {
            "_id": [f"d{number}" for number in numbers],
            "title": [""] * len(CITIES),
            "text": [f"{city} известна давно." for city in CITIES],
        },
        "queries": {
            "_id": [f"q{number}" for number in numbers],
            "text": [f"Чем известна {city}?" for city in CITIES],
        },
        "default": {
            "query-id": [f"q{number}" for number in numbers],
            "corpus-id": [f"d{number}" for number in numbers],
            "score": [1] * len(CITIES),
        },
    }
    for config, columns in configs.items():
        path = folder / "SampleRetrieval" / config / "test.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
    files = {name: [{"split": "test", "path": f"{name}/test.parquet"}] for name in configs}
    front = {"configs": [{"config_name": name, "data_files": own} for name, own in files.items()]}
    text = f"---\n{yaml.safe_dump(front)}---\n"
    (folder / "SampleRetrieval" / "README.md").write_text(text)


class Place:
    """A working folder, with data in it or in the bucket."""

    def __init__(self, root: Path, s3: S3, prefix: str) -> None:
        self.root = root
        self.url = f"s3://samovar/{prefix}"
        self.params = yaml.safe_load((ROOT / "infra/profiles/pico.yaml").read_text("utf-8"))
        self.params["store"] = {"url": "store", "endpoint_url": s3.endpoint_url}
        self.params["compute"] |= {"device": "cpu", "precision": "fp32", "threads": 1}
        self.params["evaluate"]["tasks"] = {"SampleRetrieval": "RiaNewsRetrieval"}
        self.storage = open_storage(self.url, s3.endpoint_url)

    def upload(self, folder: str) -> str:
        """Store a local folder; its address."""
        self.storage.upload_folder(self.root / folder, folder)
        return f"{self.url}/{folder}"

    def run(self, stage: str, *arguments: str) -> None:
        """Run a stage with the parameters as they stand."""
        text = yaml.safe_dump(self.params, allow_unicode=True)
        (self.root / "params.yaml").write_text(text, "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", f"tasks.{stage}", *arguments],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def output(self, folder: str) -> dict[str, bytes]:
        """Files below a folder of artifacts/."""
        root = self.root / "artifacts" / folder
        files = sorted(path for path in root.rglob("*") if path.is_file())
        assert files
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def place(s3: S3, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, s3, request.node.name)


def test_ingest_reads_every_format_from_the_bucket(place: Place) -> None:
    sources = write_corpus(place.root / "corpus")
    write_benchmark(place.root / "benchmark")
    place.params["data"] = {"corpus": "corpus", "benchmark": "benchmark"}
    place.params["ingest"]["sources"] = sources
    for section in ("pretrain", "finetune"):
        place.params[section]["sources"] = {"table": 1.0}
    place.params["mine"]["sources"] = ["table"]
    for variant in place.params["multitask"]["variants"].values():
        variant["sources"] = {"table": 1.0}
    place.run("ingest")
    local = place.output("ingest")
    assert json.loads(local["metrics.json"])["totals"]["read"] == 4 * len(CITIES) + 1
    place.params["data"] = {name: place.upload(name) for name in ("corpus", "benchmark")}
    place.run("ingest")
    assert place.output("ingest") == local


def test_a_decoder_comes_from_the_bucket(place: Place, pico_folder: Path) -> None:
    ingested = place.root / "artifacts" / "ingest"
    write_table(pa.table({"title": [""], "text": CITIES[:1]}), ingested / "documents")
    pairs = [{"query": "q", "positives": ["p"], "negatives": ["n"]}]
    write_table(pa.Table.from_pylist(pairs), ingested / "examples")
    place.params["backbone"] |= {"scratch": None, "source": str(pico_folder)}
    place.run("outside")
    place.run("backbone")
    local = place.output("backbone/model")
    place.storage.upload_folder(pico_folder, "decoder")
    place.params["backbone"]["source"] = f"{place.url}/decoder"
    place.run("outside")
    place.run("backbone")
    assert place.output("backbone/model") == local
    recorded = (place.root / "outside.json").read_bytes()
    place.run("outside")
    assert (place.root / "outside.json").read_bytes() == recorded
    place.storage.write_bytes("decoder/config.json", b"{}")
    place.run("outside")
    assert (place.root / "outside.json").read_bytes() != recorded


def test_a_rung_is_evaluated_on_a_benchmark_in_the_bucket(place: Place) -> None:
    write_benchmark(place.root / "benchmark")
    RandomVectors(dimension=8, seed=1).save(place.root / "artifacts" / "baseline" / "random")
    place.params["data"]["benchmark"] = "benchmark"
    place.run("evaluate", "random")
    local = place.output("evaluate/random")
    place.params["data"]["benchmark"] = place.upload("benchmark")
    place.run("evaluate", "random")
    assert place.output("evaluate/random") == local


def test_dvc_follows_a_corpus_in_the_bucket(toy: Toy, s3: S3) -> None:
    """The address is a dependency outside the remote, so DVC must be told the service apart."""
    url = "s3://samovar/followed"
    bucket = open_storage(url, s3.endpoint_url)
    bucket.write_bytes("a.txt", b"one")
    toy.set_params(
        data={"corpus": url, "benchmark": url},
        store={"url": "store", "endpoint_url": s3.endpoint_url},
    )
    pipeline = yaml.safe_load((toy.root / "dvc.yaml").read_text())
    pipeline["stages"]["ingest"]["deps"].append("${data.corpus}")
    (toy.root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    for runs in (1, 1):
        status, output = toy.retrain("--stages", "ingest", **KEYS)
        assert status == 0, output
        assert len(toy.order()) == runs
    by_hand = toy.dvc("status", "ingest", AWS_ENDPOINT_URL=s3.endpoint_url, **KEYS)
    assert "up to date" in by_hand.stdout, by_hand.stderr
    bucket.write_bytes("b.txt", b"two")
    status, output = toy.retrain("--stages", "ingest", **KEYS)
    assert status == 0, output
    assert toy.order() == ["ingest", "ingest"]
