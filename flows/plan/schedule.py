"""Which step may start when: no step before what it reads, only so many of a kind at a time.

Knows neither Prefect nor DVC. Prefect's own waiting would not do: it blocks one worker thread per
waiting task, so that two waiting stages keep a third, ready one from starting.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flows.plan.dag import Stage

Kind = Literal["stage", "hook", "update", "push", "last push"]
AT_ONCE: dict[Kind, int] = {"stage": 2, "hook": 1, "update": 1, "push": 1, "last push": 1}
"""Steps of a kind that run side by side; a push has a place of its own and delays no stage."""
MOST_STAGES = 16
"""However many GPUs there are: the processor and the memory of the machine are shared by all."""

CHAMPION = "champion"
"""Hook that fetches the champion's scores before the stage that compares with them."""
GATE = "gate"


@dataclass(frozen=True)
class Step:
    """One thing to do in a run."""

    name: str
    kind: Kind
    upstream: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    """Stages a push copies, all when empty; the `.dvc` file of an update."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    name: str
    kind: Kind
    state: str
    """Completed, Cached, Skipped, NotRun, or Failed and the like."""
    seconds: float
    message: str

    @property
    def is_new(self) -> bool:
        """Whether its outputs may have changed."""
        return self.state in {"Completed", "Cached"}

    @property
    def is_good(self) -> bool:
        """Whether what depends on it can run."""
        return self.is_new or self.state == "Skipped"


class Runner(Protocol):
    """Runs single steps."""

    def start(
        self, step: Step, *, is_stale: bool, blocked_by: str | None, done: Callable[[], None]
    ) -> None:
        """Start `step` and return at once; `done` is called, in any thread, when it has ended."""
        ...

    def outcome(self, step: Step) -> Outcome:
        """How `step`, which has ended, ended."""
        ...


def plan(stages: list[Stage]) -> list[Step]:
    """The steps of a run: each stage, its push, and the hook before the gate, in a valid order."""
    steps: list[Step] = []
    chosen = {stage.name for stage in stages}
    for stage in stages:
        upstream = tuple(name for name in stage.upstream if name in chosen)
        if stage.name == GATE:
            steps.append(Step(CHAMPION, "hook", upstream))
            upstream += (CHAMPION,)
        steps.append(Step(stage.name, "stage", upstream))
        steps.append(Step(f"push {stage.name}", "push", (stage.name,), (stage.name,)))
    return steps


def places_for(gpus: int) -> dict[Kind, int]:
    """Steps of a kind that run side by side: on several GPUs a stage for each of them.

    A stage that needs more GPUs than are free waits for them itself.
    """
    return {**AT_ONCE, "stage": min(max(AT_ONCE["stage"], gpus), MOST_STAGES)}


def run_steps(
    steps: Sequence[Step],
    stale: set[str],
    runner: Runner,
    places: Mapping[Kind, int] = AT_ONCE,
) -> list[Outcome]:
    """Run `steps` and return how each ended, in their order; an unneeded push is left out.

    Pushes that wait for the same place go together as one step, which stands where the first stood.

    Args:
        steps: Each after all it depends on.
        stale: Steps known to have work to do; whatever reads a new output is stale as well.
        runner: Starts and collects single steps.
        places: How many steps of a kind run side by side.
    """
    waiting = {step.name: step for step in steps}
    order = {step.name: number for number, step in enumerate(steps)}
    causes: dict[str, str] = {}
    running: dict[str, Step] = {}
    outcomes: dict[str, Outcome] = {}
    finished: queue.SimpleQueue[str] = queue.SimpleQueue()
    while waiting or running:
        pushes = _waiting_pushes(waiting, outcomes)
        if len(pushes) > 1 and not any(step.kind == "push" for step in running.values()):
            together = _together(pushes)
            order[together.name] = order[pushes[0].name]
            waiting = {name: step for name, step in waiting.items() if step not in pushes}
            waiting[together.name] = together
        for step in _ready(waiting, running, outcomes, places):
            del waiting[step.name]
            upstream = [outcomes[name] for name in step.upstream]
            is_stale = step.name in stale or any(outcome.is_new for outcome in upstream)
            running[step.name] = step
            broken = next((outcome.name for outcome in upstream if not outcome.is_good), None)
            if broken is not None:
                causes[step.name] = causes.get(broken, broken)
            runner.start(
                step,
                is_stale=is_stale,
                blocked_by=causes.get(step.name),
                done=lambda name=step.name: finished.put(name),
            )
        if running:
            name = finished.get()
            outcomes[name] = runner.outcome(running.pop(name))
    return [outcomes[name] for name in sorted(outcomes, key=order.__getitem__)]


def _waiting_pushes(waiting: dict[str, Step], outcomes: dict[str, Outcome]) -> list[Step]:
    """Those of outputs that are there; one of an output that is not new is taken out."""
    ended = [
        step
        for step in waiting.values()
        if step.kind == "push" and outcomes.keys() >= set(step.upstream)
    ]
    needed = [step for step in ended if any(outcomes[name].is_new for name in step.upstream)]
    for step in ended:
        if step not in needed:
            del waiting[step.name]
    return needed


def _together(pushes: Sequence[Step]) -> Step:
    targets = tuple(target for push in pushes for target in push.targets)
    upstream = tuple(name for push in pushes for name in push.upstream)
    return Step(f"push {', '.join(targets)}", "push", upstream, targets)


def _ready(
    waiting: dict[str, Step],
    running: dict[str, Step],
    outcomes: dict[str, Outcome],
    places: Mapping[Kind, int],
) -> list[Step]:
    """The steps that may start now, within the places left of each kind."""
    left = dict(places)
    for step in running.values():
        left[step.kind] -= 1
    ready: list[Step] = []
    for step in waiting.values():
        if left[step.kind] > 0 and outcomes.keys() >= set(step.upstream):
            left[step.kind] -= 1
            ready.append(step)
    return ready
