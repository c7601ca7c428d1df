"""Tasks of mteb that read a local folder instead of the hub."""

import difflib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import datasets
import mteb
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import DatasetCard
from mteb.abstasks import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval

from tasks.contract.stage import StageError
from tasks.evaluate.retrieved import KeepsRanking
from tasks.store.storage import inner_path


def local_task(folder: Path, official_name: str, seed: int) -> AbsTask:
    """The official task `official_name`, reading `folder`.

    A folder that bears another name is another task of the same kind: it takes class and metadata
    but neither the official sampling nor the name, so that no score of a stand-in is ever
    reported as the official one.

    Raises:
        StageError: The folder or a split is missing, or mteb knows no such task.
    """
    official = official_task(official_name)
    if not folder.is_dir():
        neighbours = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        raise StageError(
            f"evaluation task {folder.name}: {folder} does not exist; {folder.parent} holds "
            f"{neighbours}. Correct evaluate.tasks, or fill the folder with "
            f"`python -m infra.mirror_benchmark`"
        )
    _check_readme(folder / "README.md")
    metadata = official.metadata.model_copy(
        update={
            "name": folder.name,
            "dataset": {"path": str(folder), "revision": "main"},
            "eval_langs": _languages_present(official, folder),
            "eval_splits": _splits_present(official, folder),
        }
    )
    attributes: dict[str, object] = {"metadata": metadata, "fast_loading": False}
    if folder.name != official_name:
        attributes["dataset_transform"] = AbsTask.dataset_transform
    mixin = (KeepsRanking,) if isinstance(official, AbsTaskRetrieval) else ()
    local = cast("type[AbsTask]", type(folder.name, (*mixin, type(official)), attributes))
    return local(seed=seed)


def official_task(name: str) -> AbsTask:
    """The task of that name as mteb defines it.

    Raises:
        StageError: mteb knows no such task; close names are suggested.
    """
    try:
        with warnings.catch_warnings():
            # Renamed and superseded tasks stay usable: which one to run is the user's choice.
            warnings.simplefilter("ignore")
            return mteb.get_task(name)
    except KeyError:
        known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {close}?" if close else "see `mteb available-tasks`"
        raise StageError(f"evaluate.tasks names {name!r}, unknown to mteb; {hint}") from None


def _check_readme(path: Path) -> None:
    """See that the data are those of the folder, with which ingest has compared the training rows.

    Raises:
        StageError: README.md names a file elsewhere, which may be an address of the net.
    """
    if not path.is_file():
        return
    configs = DatasetCard.load(path, ignore_metadata_errors=True).data.get("configs")
    # what is no list of mappings here is refused by `datasets` itself
    for config in configs if isinstance(configs, list) else []:
        places = (
            [config.get("data_dir"), config.get("data_files")] if isinstance(config, dict) else []
        )
        for name in _strings(places):
            if Path(name).parts:  # '.' is the folder itself
                inner_path(name, str(path))


def _strings(value: object) -> Iterator[str]:
    """Every path in `data_files`: one, a list, or mappings of a split to either."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        yield from _strings([each for key, each in value.items() if key != "split"])


def _configs(folder: Path) -> list[str]:
    try:
        return datasets.get_dataset_config_names(str(folder))
    except (DatasetNotFoundError, DataFilesNotFoundError):
        raise StageError(
            f"{folder} is no data set: expected README.md with `configs` and "
            f"<config>/<split>.parquet"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        infos = folder / "dataset_infos.json"
        if not infos.exists():
            raise
        raise StageError(
            f"{infos} does not describe a data set ({error}): remove it, README.md with `configs` "
            "is enough"
        ) from error


def _languages_present(official: AbsTask, folder: Path) -> object:
    """Languages of the task, of a multilingual one only those the folder holds."""
    languages = official.metadata.eval_langs
    if not isinstance(languages, dict):
        return languages
    configs = _configs(folder)
    present = {
        subset: codes
        for subset, codes in languages.items()
        if any(config == subset or config.startswith(f"{subset}-") for config in configs)
    }
    if not present:
        raise StageError(f"{folder} has the configs {configs}, none of {sorted(languages)}")
    return present


def _splits_present(official: AbsTask, folder: Path) -> list[str]:
    """Official evaluation splits that the folder holds, in the official order.

    A folder of another name may have `test` where the official task says otherwise.
    """
    configs = _configs(folder)
    if isinstance(official, AbsTaskRetrieval):
        configs = [name for name in configs if name.rpartition("-")[2] in {"default", "qrels"}]
    held = {
        split
        for config in configs
        for split in datasets.get_dataset_split_names(str(folder), config)
    }
    wanted = list(official.eval_splits)
    if folder.name != official.metadata.name and not held.intersection(wanted):
        wanted = ["test"]
    present = [split for split in wanted if split in held]
    needed = [official.train_split] if isinstance(official, AbsTaskClassification) else []
    if not present or not held.issuperset(needed):
        raise StageError(
            f"{folder} has the splits {sorted(held)}, but {official.metadata.name} needs "
            f"{wanted + needed}"
        )
    return present
