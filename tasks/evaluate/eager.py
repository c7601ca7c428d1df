"""Data sets whose columns are plain lists.

A column of a `datasets.Dataset` is decoded anew, row by row, at every pass; mteb passes over the
labels some three hundred times per classification task, which costs ten times the scoring itself.
"""

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval


class EagerDataset(Dataset):
    """A data set that decodes a column once and hands out the list."""

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - signature of datasets
        """Rows as before; a column as a list."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        columns: dict[str, list[Any]] = self.__dict__.setdefault("_columns", {})
        if key not in columns:
            columns[key] = list(super().__getitem__(key))
        return columns[key]


def decode_columns_once(task: AbsTask) -> None:
    """Make the splits of a loaded task eager; retrieval tasks read each column once anyway."""
    if isinstance(task, AbsTaskRetrieval) or task.dataset is None:
        return
    if isinstance(task.dataset, DatasetDict):
        task.dataset = _eager(task.dataset)  # pyright: ignore[reportAttributeAccessIssue]  # as mteb does
    else:
        task.dataset = {subset: _eager(splits) for subset, splits in task.dataset.items()}


def _eager(splits: DatasetDict) -> DatasetDict:
    eager = {}
    for name, split in splits.items():
        table = split.flatten_indices().data.table
        eager[name] = EagerDataset(table, info=split.info, split=split.split)
    return DatasetDict(eager)
