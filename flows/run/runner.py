"""Each step of a run as a Prefect task, whose state and edges the UI shows."""

import time
from collections.abc import Callable
from typing import Any

from prefect import allow_failure
from prefect.futures import PrefectFuture
from prefect.tasks import Task

from flows.plan.schedule import Kind, Outcome, Step
from flows.run.stage import push, push_insistently, run_hook, run_stage, update

TASKS: dict[Kind, Task[..., Any]] = {
    "stage": run_stage,
    "hook": run_hook,
    "update": update,
    "push": push,
    "last push": push_insistently,
}


class PrefectRunner:
    """Runs each step as a Prefect task."""

    def __init__(self, forced: set[str]) -> None:
        self._forced = forced
        self._futures: dict[str, PrefectFuture[float]] = {}
        self._started: dict[str, float] = {}

    def start(
        self, step: Step, *, is_stale: bool, blocked_by: str | None, done: Callable[[], None]
    ) -> None:
        """Submit `step`; all it waits for has ended, so the edges only draw the graph."""
        edges = [allow_failure(self._futures[name]) for name in step.upstream]
        self._started[step.name] = time.monotonic()
        task = TASKS[step.kind]
        parameters: dict[str, Any] = {"blocked_by": blocked_by}
        match step.kind:
            case "stage":
                forced = step.name in self._forced
                parameters = {"is_stale": is_stale, "is_forced": forced, "blocked_by": blocked_by}
            case "push" | "last push":
                parameters = {"stages": list(step.targets)}
            case "update":
                parameters = {"file": step.targets[0]}
        future = task.submit(step.name, **parameters, wait_for=edges)
        self._futures[step.name] = future
        future.add_done_callback(lambda _future: done())

    def outcome(self, step: Step) -> Outcome:
        """The state of the task as Prefect recorded it."""
        future = self._futures[step.name]
        result = future.result(raise_on_failure=False)
        if isinstance(result, float):
            return Outcome(step.name, step.kind, str(future.state.name), result, "")
        seconds = time.monotonic() - self._started[step.name]
        return Outcome(step.name, step.kind, str(future.state.name), seconds, str(result))
