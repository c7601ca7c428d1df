"""Stage ingest: every declared source in one schema, cleaned, counted and split.

Rows pass in two phases. Admission reads the sources in the order of params.yaml and refuses row by
row. Assembly then samples, holds the development split out, pairs labelled texts and writes. A row
in between lies on disk, so memory holds no corpus.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.contract.records import write_table
from tasks.contract.stage import StageError, atomic_folder, run_stage, write_json
from tasks.ingest.admission import Admission, Admitted
from tasks.ingest.assembly import Assembly, split_sources
from tasks.ingest.evaluation import read_benchmark
from tasks.ingest.in_domain import InDomain
from tasks.ingest.locations import source_files
from tasks.ingest.overlap import OverlapIndex
from tasks.ingest.quarantine import Quarantine
from tasks.outside import recorded
from tasks.params.data import Ingest
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("ingest", recorded("ingest", ingest))


def ingest(params: Params) -> None:
    """Write artifacts/ingest: examples, development, documents, evaluation, quarantine.

    Raises:
        StageError: A source cannot be read or used, or nothing is left to train on.
    """
    _check_sources(params.ingest)
    with atomic_folder(ARTIFACTS / "ingest") as folder:
        spool = folder / "spool"
        spool.mkdir()
        evaluation, train = read_benchmark(
            params.data.benchmark, params.store.endpoint_url, params.ingest.overlap
        )
        quarantine = Quarantine(spool / "quarantine.arrow")
        admitted = _admit_sources(params, evaluation, quarantine, spool)
        splits = split_sources(admitted, params.ingest.development_fraction)
        assembly = Assembly(params.ingest, splits, InDomain(train), spool)
        counts = {split.admitted.name: assembly.add(split, quarantine) for split in splits}
        examples, development, documents = assembly.finish()
        _require_rows(params.ingest, examples, documents)
        tables = {
            "examples": examples,
            "development": development,
            "documents": documents,
            "evaluation": evaluation,
            "quarantine": quarantine.finish(),
        }
        for name, table in tables.items():
            write_table(table, folder / name, shard_rows=params.ingest.shard_rows)
        metrics = _metrics(counts, quarantine, tables)
        metrics["limits"] = params.ingest.model_dump(include={"min_characters", "max_characters"})
        write_json(folder / "metrics.json", metrics)
        shutil.rmtree(spool)


def _admit_sources(
    params: Params, evaluation: pa.Table, quarantine: Quarantine, spool: Path
) -> list[Admitted]:
    overlap = OverlapIndex(
        evaluation["task"].to_pylist(), evaluation["text"].to_pylist(), params.ingest.overlap_words
    )
    admission = Admission(params.ingest, overlap, quarantine)
    files = {
        name: source_files(name, source, params.data.corpus, params.store.endpoint_url)
        for name, source in params.ingest.sources.items()
    }
    return [
        admission.admit(name, source, files[name], spool / f"{name}.admitted")
        for name, source in params.ingest.sources.items()
    ]


def _check_sources(section: Ingest) -> None:
    for name, source in section.sources.items():
        if source.lang is not None and source.lang not in section.languages:
            raise StageError(
                f"source {name} has lang {source.lang}, but ingest.languages keeps only "
                f"{section.languages}: add it there or remove the source"
            )
        low, high = source.score_range
        if low >= high:
            raise StageError(f"source {name}: score_range {low}, {high} must go from low to high")


def _require_rows(section: Ingest, examples: pa.Table, documents: pa.Table) -> None:
    if section.has_examples and not len(examples):
        raise StageError("no training example is left: see why its rows were refused, above")
    if not len(documents):
        raise StageError(
            "no document at all: declare a source of task documents, or set also_documents on one"
        )


def _metrics(
    counts: dict[str, dict[str, Any]], quarantine: Quarantine, tables: dict[str, pa.Table]
) -> dict[str, Any]:
    """Counts per source and in total.

    In every source, read = kept + development + unsampled + all of quarantined; documents that
    come from positives are counted in `documents` besides.
    """
    sources: dict[str, Any] = {}
    for name, own in counts.items():
        refused = dict(sorted(quarantine.counts[name].items()))
        used = own["kept"] + own["development"] + own["unsampled"] + sum(refused.values())
        if own["read"] != used:
            raise RuntimeError(f"source {name}: {own['read']} rows read but {used} accounted for")
        sources[name] = {**own, "quarantined": refused}
    totals = {name: len(table) for name, table in tables.items()}
    totals["read"] = sum(own["read"] for own in counts.values())
    totals["unsampled"] = sum(own["unsampled"] for own in counts.values())
    return {"sources": sources, "totals": totals}


if __name__ == "__main__":
    main()
