"""The stages and their order, read from dvc.yaml: the only place where they are written.

DVC's Python interface is called from one thread, never while a task of the run is calling it too:
its read-write lock counts processes, not threads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage
from networkx import lexicographical_topological_sort

from flows.errors import FlowError

NEVER_RUN = "dvc.lock has no run of it"


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml."""

    name: str
    """As DVC addresses it: `ingest`, `multitask@balanced`."""
    upstream: tuple[str, ...]
    """Stages whose outputs it reads."""
    metrics: tuple[Path, ...]
    """Its metrics files."""


def open_repo() -> Repo:
    """The repository of this folder; it waits for its lock as long as another process holds it."""
    return Repo(_wait_for_lock=True)


def read_stages() -> list[Stage]:
    """The stages of this folder's repository in the order of dvc.yaml, each after all it reads.

    Raises:
        FlowError: dvc.yaml cannot be used.
    """
    try:
        with open_repo() as repo:
            written = [node for node in repo.index.stages if isinstance(node, PipelineStage)]
            graph = repo.index.graph.subgraph(written)
            order = lexicographical_topological_sort(graph.reverse(), key=written.index)
            return [
                Stage(
                    name=str(node.addressing),
                    upstream=tuple(sorted(str(up.addressing) for up in graph.successors(node))),
                    metrics=tuple(Path(out.def_path) for out in node.outs if out.metric),
                )
                for node in order
            ]
    except DvcException as error:
        raise FlowError(f"dvc.yaml cannot be used (`dvc status` says more): {error}") from error


def select(stages: list[Stage], names: Iterable[str]) -> list[Stage]:
    """The stages called `names`; the name of a matrix stands for all its stages.

    Raises:
        FlowError: A name is no stage.
    """
    wanted = set(names)
    chosen = [stage for stage in stages if {stage.name, stage.name.split("@")[0]} & wanted]
    known = {stage.name for stage in stages} | {stage.name.split("@")[0] for stage in stages}
    if wanted - known:
        raise FlowError(
            f"no such stage: {', '.join(sorted(wanted - known))}; dvc.yaml has "
            f"{', '.join(stage.name for stage in stages)}"
        )
    return chosen


def after(stages: list[Stage], name: str) -> set[str]:
    """The stage called `name` and all that reads of it, directly or through others.

    Raises:
        FlowError: The name is no stage.
    """
    found = {stage.name for stage in select(stages, [name])}
    for stage in stages:
        if found & set(stage.upstream):
            found.add(stage.name)
    return found


def changed() -> dict[str, str]:
    """What is not up to date: stage or .dvc file to a short reason. Hashes changed files only."""
    try:
        with open_repo() as repo:
            # without an entry in dvc.lock DVC calls every input modified, though nobody touched it
            new = {
                str(stage.addressing)
                for stage in repo.index.stages
                if isinstance(stage, PipelineStage)
                and not any(item.hash_info for item in (*stage.deps, *stage.outs))
            }
            return {
                name: NEVER_RUN if name in new else _reason(faults)
                for name, faults in repo.status().items()
            }
    except DvcException as error:
        raise FlowError(f"dvc status failed: {error}") from error


def check_data(changes: dict[str, str]) -> None:
    """Refuse corpora that differ from the version their .dvc file names.

    DVC would train on them all the same, and nobody could tell later what the model had seen.

    Raises:
        FlowError: A .dvc file does not match its data.
    """
    faults = [
        f"{name}: {reason}. Keep the change with `dvc commit --force {name}`, "
        f"or fetch the recorded version with `dvc pull {name}`"
        for name, reason in changes.items()
        if name.endswith(".dvc")
    ]
    if faults:
        raise FlowError("\n".join(faults))


def _reason(faults: list[object]) -> str:
    """`[{"changed deps": {"a": "modified"}}]` as `changed deps: a modified`."""
    parts: list[str] = []
    for fault in faults:
        if isinstance(fault, dict):
            parts += [f"{kind}: {_items(items)}" for kind, items in fault.items()]
        else:
            parts.append(str(fault))
    return "; ".join(parts)


def _items(items: object) -> str:
    if not isinstance(items, dict):
        return str(items)
    return ", ".join(
        f"{name} {state if isinstance(state, str) else 'changed'}" for name, state in items.items()
    )
