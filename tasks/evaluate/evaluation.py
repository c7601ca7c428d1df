"""One rung of the ladder over every task of the benchmark."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import datasets
from mteb import EncoderProtocol, TaskResult
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from sklearn.exceptions import UndefinedMetricWarning

from tasks.contract.stage import StageError, atomic_folder, write_json
from tasks.evaluate.benchmark import local_task
from tasks.evaluate.eager import decode_columns_once
from tasks.evaluate.embedder import Embedder
from tasks.evaluate.instructions import Instructions
from tasks.evaluate.left_out import left_out_scores
from tasks.evaluate.retrieved import retrieved_passages
from tasks.evaluate.rungs import open_rung
from tasks.evaluate.scores import TaskScore, summary, task_score
from tasks.evaluate.threads import use_threads
from tasks.machine.compute import use_compute
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.store.storage import open_storage

LOADER_ROWS = 4096
"""Rows mteb hands over at a time; the encoder cuts its own batches, by tokens."""

logger = logging.getLogger(__name__)


def evaluate_rung(params: Params, rung: str) -> None:
    """Write artifacts/evaluate/<rung>/.

    Raises:
        StageError: evaluate.checkpoints has no such rung, or a model or a task is missing.
    """
    if rung not in params.evaluate.checkpoints:
        raise StageError(
            f"{rung!r} is no rung: evaluate.checkpoints has {list(params.evaluate.checkpoints)}"
        )
    machine = use_compute(params.compute)
    embedder = Embedder(
        open_rung(
            ARTIFACTS / params.evaluate.checkpoints[rung],
            machine,
            attn_implementation=params.backbone.attn_implementation,
            batch_tokens=params.evaluate.batch_tokens,
            max_length_tokens=params.evaluate.max_length_tokens,
        ),
        Instructions.of(params),
        threads=params.compute.threads,
    )
    datasets.disable_progress_bars()
    # The classifiers and clusterings of mteb are so small that threads wait longer than they work;
    # one thread also sums in one order on every machine. Only the encoder gets more.
    with (
        _benchmark_folder(params) as benchmark,
        use_threads(1),
        atomic_folder(ARTIFACTS / "evaluate" / rung) as output,
    ):
        _evaluate_tasks(params, embedder, benchmark, output)


def _evaluate_tasks(params: Params, embedder: Embedder, benchmark: Path, output: Path) -> None:
    scores: dict[str, TaskScore] = {}
    (output / "results").mkdir()
    for name, official_name in params.evaluate.tasks.items():
        started = time.monotonic()
        task = local_task(benchmark / name, official_name, params.evaluate.seed)
        scores[name] = task_score(run_task(task, embedder), task.metadata.type)
        if name == params.report.example_task:
            passages = retrieved_passages(task, params.report.example_queries)
            write_json(output / "retrieved.json", passages)
        task.unload_data()
        write_json(output / "results" / f"{name}.json", scores[name].result)
        logger.info(
            "%s %s %.4f, %.1f s",
            name,
            task.metadata.main_score,
            scores[name].main_score,
            time.monotonic() - started,
        )
    totals = summary(scores)
    with use_threads(params.compute.threads):
        left_out = left_out_scores(params, embedder.rung)
    write_json(output / "scores.json", {**totals, "left_out": left_out})
    metrics = {**totals["tasks"], "mean": totals["mean"]}
    logger.info("mean over %d tasks %.4f", len(scores), totals["mean"])
    if left_out:
        metrics["left_out"] = {**left_out, "mean": round(fmean(left_out.values()), 6)}
        logger.info(
            "mean over %d sources left out %.4f", len(left_out), metrics["left_out"]["mean"]
        )
    write_json(output / "metrics.json", metrics)


def run_task(task: AbsTask, embedder: Embedder) -> TaskResult:
    """The result of one task on all of its splits, as mteb gives it; the data stay loaded.

    This is what `mteb.evaluate` does, without its import of sentence-transformers and its cache of
    results by model name.
    """
    task.load_data()
    encode_kwargs: Any = {"batch_size": LOADER_ROWS, "show_progress_bar": False}
    _sort_relevant_documents(task)
    decode_columns_once(task)
    # The protocol of mteb also fixes the constructor, which only its command line calls.
    model = cast("EncoderProtocol", embedder)
    scores: dict[Any, Any] = {}
    with warnings.catch_warnings():
        # A class that no classifier predicts has no precision: mteb scores it 0, as it should.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning, "mteb")
        for split in task.eval_splits:
            scores[split] = task.evaluate(model, split, encode_kwargs=encode_kwargs)
    return TaskResult.from_task_results(task, scores, evaluation_time=0.0)


def _sort_relevant_documents(task: AbsTask) -> None:
    """Fix the order of the queries, which the loader of mteb leaves to chance.

    A mean over queries in another order differs in its last digits.
    """
    if not isinstance(task, AbsTaskRetrieval):
        return
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    for splits in task.dataset.values():
        for data in splits.values():
            data["relevant_docs"] = dict(sorted(data["relevant_docs"].items()))


@contextmanager
def _benchmark_folder(params: Params) -> Iterator[Path]:
    """The benchmark as a local folder, fetched first when it lies in object storage."""
    if "://" not in params.data.benchmark:
        yield Path(params.data.benchmark)
        return
    storage = open_storage(params.data.benchmark, params.store.endpoint_url)
    with tempfile.TemporaryDirectory() as folder:
        for name in params.evaluate.tasks:
            storage.download_folder(name, Path(folder) / name)
        yield Path(folder)
