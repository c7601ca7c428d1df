"""Held-out texts of labelled sources, and how many are nearest to the mean of their own class.

Shape letters: N = training texts, Q = held-out texts, C = classes, D = embedding size.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tasks.contract.prompts import query_prompt
from tasks.contract.records import CLASS_TASKS
from tasks.params.load import Prompts

TEXTS_PER_CLASS = 16
"""Training texts whose mean stands for a class; every candidate encodes them again."""

Encode = Callable[[Sequence[str], str], np.ndarray]
"""Unit vectors of texts under a prompt."""


@dataclass
class LabelledSource:
    """Texts of one source and the class of each, its labels joined if it has several."""

    prompt: str
    known: list[tuple[str, str]] = field(default_factory=list)
    """Text and class of training rows."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """The same of held-out rows; their classes all occur in `known`."""


def select_labelled(
    development: pa.Table, training: pa.Table, prompts: Prompts, max_examples: int
) -> list[LabelledSource]:
    """The first held-out rows by id, which is a hash, in order of their sources' names.

    Args:
        development: Rows of the development split.
        training: Rows of training, the first of each class by id stand for it.
        prompts: Prompts of the tasks.
        max_examples: Held-out rows of all sources together.
    """
    held_out = _rows(development).slice(0, max_examples)
    tasks = dict(zip(held_out["source"].to_pylist(), held_out["task"].to_pylist(), strict=True))
    found = {name: LabelledSource(query_prompt(prompts, tasks[name])) for name in sorted(tasks)}
    counts: Counter[tuple[str, str]] = Counter()
    for source, text, label in _cells(_rows(training, list(tasks))):
        counts[source, label] += 1
        if counts[source, label] <= TEXTS_PER_CLASS:
            found[source].known.append((text, label))
    for source, text, label in _cells(held_out):
        if (source, label) in counts:
            found[source].asked.append((text, label))
    return [source for source in found.values() if source.asked]


def _rows(table: pa.Table, sources: list[str] | None = None) -> pa.Table:
    is_wanted = np.isin(table["task"].to_pylist(), CLASS_TASKS)
    if sources is not None:
        is_wanted &= np.isin(table["source"].to_pylist(), sources)
    columns = ["id", "task", "source", "query", "label"]
    return table.select(columns).filter(pa.array(is_wanted)).sort_by("id")


def _cells(table: pa.Table) -> list[tuple[str, str, str]]:
    columns = (table[name].to_pylist() for name in ("source", "query", "label"))
    return list(zip(*columns, strict=True))


def accuracy(sources: Sequence[LabelledSource], encode: Encode) -> float:
    """Share of the held-out texts whose own class has the nearest mean, mean over the sources."""
    return float(np.mean([_accuracy(source, encode) for source in sources]))


def _accuracy(source: LabelledSource, encode: Encode) -> float:
    members: defaultdict[str, list[int]] = defaultdict(list)
    for number, (_, label) in enumerate(source.known):
        members[label].append(number)
    known_ND = encode([text for text, _ in source.known], source.prompt)
    centre_CD = np.stack([known_ND[numbers].mean(axis=0) for numbers in members.values()])
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    asked_QD = encode([text for text, _ in source.asked], source.prompt)
    nearest_Q = (asked_QD @ centre_CD.T).argmax(axis=1)
    classes = list(members)
    return float(
        np.mean(
            [classes[n] == label for n, (_, label) in zip(nearest_Q, source.asked, strict=True)]
        )
    )
