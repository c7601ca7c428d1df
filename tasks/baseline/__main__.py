"""Stage baseline: random vectors and TF-IDF, the rungs below every model, and its rivals."""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import xxhash
from threadpoolctl import threadpool_limits

from tasks.baseline.random_vectors import RandomVectors
from tasks.baseline.rival import Rival
from tasks.baseline.tfidf import Tfidf
from tasks.contract.records import read_table
from tasks.contract.stage import StageError, atomic_folder, read_json, run_stage, write_json
from tasks.outside import recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS, OUTSIDE

MAX_NGRAMS = 20_000
"""Columns of TF-IDF: the projection stays below 32 MB, rarer n-grams hardly move a score."""
MAX_CHARACTERS = 1000
"""Characters read of one text: its n-gram statistics have settled by then."""

logger = logging.getLogger(__name__)


def write_baselines(params: Params) -> None:
    """Write both baselines to artifacts/baseline/, fitted on the training texts alone."""
    settings = params.baseline
    texts = sample_texts(training_texts(), settings.max_texts, settings.seed)
    logger.info("fitting TF-IDF on %d texts", len(texts))
    started = time.monotonic()
    # One thread sums in one order, and so gives the same bytes on every machine.
    with threadpool_limits(1):
        tfidf = Tfidf.fit(
            texts,
            ngram_range=settings.ngram_range,
            max_ngrams=MAX_NGRAMS,
            dimension=settings.components,
            seed=settings.seed,
        )
    logger.info("%d n-grams, %.1f s", len(tfidf.ngrams), time.monotonic() - started)
    with atomic_folder(ARTIFACTS / "baseline") as folder:
        RandomVectors(dimension=settings.components, seed=settings.seed).save(folder / "random")
        tfidf.save(folder / "tfidf")
        _write_rivals(params, folder / "rivals")
        write_json(
            folder / "metrics.json",
            {
                "texts": len(texts),
                "ngrams": len(tfidf.ngrams),
                "dimension": settings.components,
            },
        )


def _write_rivals(params: Params, folder: Path) -> None:
    folder.mkdir()
    write_json(folder / "rivals.json", list(params.baseline.rivals))  # a folder of DVC has a file
    recorded_contents = read_json(OUTSIDE).get("baseline", {}) if OUTSIDE.exists() else {}
    for name, settings in params.baseline.rivals.items():
        Rival(name, settings, recorded_contents.get(settings.source, "")).save(folder / name)


def training_texts() -> Iterator[str]:
    """Every query, positive and document text of artifacts/ingest/."""
    examples = read_table(ARTIFACTS / "ingest" / "examples", ["query", "positives"])
    yield from examples["query"].to_pylist()
    for positives in examples["positives"].to_pylist():
        yield from positives
    yield from read_table(ARTIFACTS / "ingest" / "documents", ["text"])["text"].to_pylist()


def sample_texts(texts: Iterator[str], max_texts: int, seed: int) -> list[str]:
    """At most `max_texts` different texts, cut to a fixed length; long ones are drawn more often.

    Every character has the same chance: titles and questions outnumber passages, and n-grams learnt
    from them alone tell passages apart worse. The choice does not depend on the order of the rows.

    Raises:
        StageError: There is no text at all.

    Source: Efraimidis and Spirakis 2006, weighted sampling without replacement.
    """
    unique = {text[:MAX_CHARACTERS] for text in texts if text}
    if not unique:
        raise StageError("artifacts/ingest holds no training texts: check ingest.sources")
    return sorted(unique, key=lambda text: _draw(text, seed))[:max_texts]


def _draw(text: str, seed: int) -> tuple[float, str]:
    number = xxhash.xxh3_64_intdigest(text.encode("utf-8"), seed=seed)
    return -math.log((number + 1) / 2**64) / len(text), text


def main() -> None:
    """Run the stage on params.yaml."""
    run_stage("baseline", recorded("baseline", write_baselines))


if __name__ == "__main__":
    main()
