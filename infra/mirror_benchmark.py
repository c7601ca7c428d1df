"""Copy a benchmark from the hub: `python -m infra.mirror_benchmark "MTEB(rus, v1.1)" data/rumteb`.

Every task becomes a folder in one layout: README.md, whose YAML names the configs, and
<config>/<split>.parquet. Evaluation then needs no network, ingest reads the very texts that are
scored, and DVC hashes them.
"""

import difflib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import datasets
import mteb
import yaml
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError
from mteb.abstasks import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval

from tasks.contract.stage import StageError, atomic_folder
from tasks.params.load import ParamsError, load_params
from tasks.store.storage import inner_path, open_storage

RETRIEVAL_PARTS = ("corpus", "queries", "query", "qrels", "default", "top_ranked", "instruction")
"""Configs a retrieval task of mteb may have, prefixed by the language in a multilingual one."""

logger = logging.getLogger(__name__)


def mirror_benchmark(name: str, target: str, endpoint_url: str | None) -> None:
    """Mirror every task of the benchmark `name` that `target` does not hold yet.

    Args:
        name: As mteb spells it.
        target: A folder or an s3:// prefix, later named in data.benchmark.
        endpoint_url: Address of an S3 service other than AWS.

    Raises:
        StageError: mteb knows no such benchmark, or a task cannot be fetched.
    """
    storage = open_storage(target, endpoint_url)
    tasks = benchmark_tasks(name)
    for number, task in enumerate(tasks, start=1):
        logger.info("%d/%d %s", number, len(tasks), task.metadata.name)
        inner_path(task.metadata.name, name)
        if "://" not in target:
            mirror_task(task, Path(target) / task.metadata.name)
            continue
        if not storage.exists(f"{task.metadata.name}/README.md"):
            with tempfile.TemporaryDirectory() as folder:
                mirror_task(task, Path(folder) / "task")
                storage.upload_folder(Path(folder) / "task", task.metadata.name)
    lines = "\n".join(f"    {task.metadata.name}: {task.metadata.name}" for task in tasks)
    logger.info(
        "done; name them in params.yaml:\ndata:\n  benchmark: %s\nevaluate:\n  tasks:\n%s",
        target,
        lines,
    )


def benchmark_tasks(name: str) -> list[AbsTask]:
    """The tasks of a benchmark, with its languages and splits.

    Raises:
        StageError: mteb knows no such benchmark; close names are suggested.
    """
    known = [benchmark.name for benchmark in mteb.get_benchmarks()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
        raise StageError(f"{name!r} is no benchmark of mteb; close names are {close}")
    return list(mteb.get_benchmark(name).tasks)


def mirror_task(task: AbsTask, folder: Path) -> None:
    """Write one task to `folder`; a folder that holds the same revision is left as it is.

    Raises:
        StageError: The data set cannot be fetched, or lacks a split.
    """
    source = f"{task.metadata.dataset['path']}@{task.metadata.dataset['revision']}"
    readme = folder / "README.md"
    if readme.exists() and source in readme.read_text(encoding="utf-8"):
        logger.info("%s holds %s already", folder, source)
        return
    with atomic_folder(folder) as partial:
        configs: dict[str, list[str]] = {}
        try:
            for config, split, rows in _parts(task):
                file = partial / inner_path(f"{config}/{split}.parquet", source)
                file.parent.mkdir(exist_ok=True)
                rows.to_parquet(file)
                configs.setdefault(config, []).append(split)
                logger.info("%s/%s: %d rows", config, split, len(rows))
        except (ConnectionError, DatasetNotFoundError) as error:
            raise StageError(
                f"{source} cannot be fetched ({error}): check the network, HF_ENDPOINT and HF_TOKEN"
            ) from error
        _write_readme(partial / "README.md", task, source, configs)


def _parts(task: AbsTask) -> Iterator[tuple[str, str, Dataset]]:
    """Every (config, split, rows) the task reads."""
    for config, splits in _configs(task):
        for split in _needed_splits(task, config, splits):
            yield config, split, splits[split]


def _configs(task: AbsTask) -> Iterator[tuple[str, DatasetDict]]:
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    available = datasets.get_dataset_config_names(path, revision=revision)
    if isinstance(task, AbsTaskRetrieval):
        prefixes = [
            f"{subset}-" if task.metadata.is_multilingual else "" for subset in task.hf_subsets
        ]
        wanted = [f"{prefix}{part}" for prefix in prefixes for part in RETRIEVAL_PARTS]
        for config in available:
            if config in wanted:
                yield config, _load(path, config, revision)
    elif not task.metadata.is_multilingual:
        yield "default", _load(path, task.metadata.dataset.get("name"), revision)
    else:
        for subset in task.hf_subsets:
            if subset in available:
                yield subset, _load(path, subset, revision)
            else:
                yield subset, _load(path, None, revision).filter(_is_language(subset))


def _load(path: str, config: str | None, revision: str) -> DatasetDict:
    return cast("DatasetDict", datasets.load_dataset(path, config, revision=revision))


def _is_language(subset: str) -> Callable[[dict[str, str]], bool]:
    return lambda row: row["lang"] == subset


def _needed_splits(task: AbsTask, config: str, splits: DatasetDict) -> list[str]:
    """Splits of the benchmark and, for classifiers, the training split.

    mteb reads the only split of a retrieval config whatever its name.
    """
    if isinstance(task, AbsTaskRetrieval) and len(splits) == 1:
        return [str(split) for split in splits]
    wanted = list(task.eval_splits)
    if isinstance(task, AbsTaskClassification) and task.train_split not in wanted:
        wanted.append(task.train_split)
    missing = set(wanted) - set(splits)
    if missing:
        raise StageError(
            f"{task.metadata.name}, config {config} has the splits {list(splits)}, not "
            f"{sorted(missing)}"
        )
    return wanted


def _write_readme(path: Path, task: AbsTask, source: str, configs: dict[str, list[str]]) -> None:
    entries = [
        {
            "config_name": config,
            **({"default": True} if config == "default" else {}),
            "data_files": [
                {"split": split, "path": f"{config}/{split}.parquet"} for split in splits
            ],
        }
        for config, splits in configs.items()
    ]
    front = yaml.safe_dump({"configs": entries}, sort_keys=False)
    text = f"---\n{front}---\n\n# {task.metadata.name}\n\nMirrored from {source}.\n"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Mirror the benchmark named first to the folder named second, else to data.benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if len(sys.argv) not in {2, 3}:
        sys.exit('usage: python -m infra.mirror_benchmark "MTEB(rus, v1.1)" [folder or s3://...]')
    datasets.disable_progress_bars()
    try:
        params = load_params()
        target = sys.argv[2] if len(sys.argv) > 2 else params.data.benchmark  # noqa: PLR2004
        mirror_benchmark(sys.argv[1], target, params.store.endpoint_url)
    except (StageError, ParamsError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
