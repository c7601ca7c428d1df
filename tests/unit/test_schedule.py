from collections.abc import Callable

import pytest

from flows.plan.dag import Stage
from flows.plan.schedule import MOST_STAGES, Outcome, Step, places_for, plan, run_steps


class Recorder:
    """Ends a step when `at_once` of its kind are running, or when it was the `last`."""

    def __init__(self, states: dict[str, str], at_once: int = 1, last: str = "") -> None:
        self.asked: dict[str, tuple[bool, str | None]] = {}
        self.most: dict[str, int] = {}
        self._states = states
        self._at_once = at_once
        self._last = last
        self._running: list[tuple[Step, Callable[[], None]]] = []

    def start(
        self, step: Step, *, is_stale: bool, blocked_by: str | None, done: Callable[[], None]
    ) -> None:
        self.asked[step.name] = (is_stale, blocked_by)
        self._running.append((step, done))
        alike = sum(running.kind == step.kind for running, _ in self._running)
        self.most[step.kind] = max(alike, self.most.get(step.kind, 0))
        while len(self._running) >= self._at_once or (self._running and step.name == self._last):
            self._running.pop(0)[1]()

    def outcome(self, step: Step) -> Outcome:
        is_stale, blocked_by = self.asked[step.name]
        usual = "NotRun" if blocked_by else "Completed" if is_stale else "Skipped"
        return Outcome(step.name, step.kind, self._states.get(step.name, usual), 0.0, "")


def chain(*names: str) -> list[Stage]:
    return [
        Stage(name, names[number - 1 : number] if number else (), ())
        for number, name in enumerate(names)
    ]


def test_champion_is_fetched_right_before_the_gate():
    names = [step.name for step in plan(chain("merge", "gate", "report"))]
    assert names == [
        "merge", "push merge", "champion", "gate", "push gate", "report", "push report",
    ]  # fmt: skip


def test_dependency_outside_the_chosen_stages_is_no_dependency():
    (only, _) = plan([Stage("merge", ("finetune",), ())])
    assert only.upstream == ()


def test_what_reads_a_new_output_is_stale():
    recorder = Recorder({})
    run_steps(plan(chain("a", "b", "c")), {"b"}, recorder)
    assert {name: recorder.asked[name][0] for name in "abc"} == {"a": False, "b": True, "c": True}


def test_only_new_outputs_are_pushed():
    recorder = Recorder({"b": "Skipped"})
    run_steps(plan(chain("a", "b")), {"a"}, recorder)
    assert "push a" in recorder.asked
    assert "push b" not in recorder.asked


class SlowPushes(Recorder):
    """Stages end at once; a push ends when the stage `last` has begun."""

    def start(
        self, step: Step, *, is_stale: bool, blocked_by: str | None, done: Callable[[], None]
    ) -> None:
        self.asked[step.name] = (is_stale, blocked_by)
        is_over = self._last in self.asked
        if step.kind == "push" and not is_over:
            self._running.append((step, done))
            return
        done()
        while is_over and self._running:
            self._running.pop()[1]()


def test_pushes_that_wait_for_the_same_place_go_together():
    stages = [Stage(name, (), ()) for name in "abcd"]
    recorder = SlowPushes({"c": "Skipped"}, last="e")
    outcomes = run_steps(plan([*stages, Stage("e", (*"abcd",), ())]), {*"abcd"}, recorder)
    assert [outcome.name for outcome in outcomes] == [
        "a", "push a", "b", "push b, d, e", "c", "d", "e",
    ]  # fmt: skip


def test_restored_output_counts_as_new():
    recorder = Recorder({"a": "Cached"})
    run_steps(plan(chain("a", "b")), {"a"}, recorder)
    assert recorder.asked["b"] == (True, None)


@pytest.mark.parametrize("state", ["Failed", "Crashed", "Cancelled"])
def test_what_depends_on_a_failure_names_its_cause(state):
    recorder = Recorder({"a": state})
    outcomes = run_steps(plan([*chain("a", "b", "c"), Stage("other", (), ())]), {"a"}, recorder)
    states = {outcome.name: outcome.state for outcome in outcomes}
    assert states == {"a": state, "b": "NotRun", "c": "NotRun", "other": "Skipped"}
    assert recorder.asked["c"][1] == "a"


def test_failed_push_stops_nothing():
    recorder = Recorder({"push a": "Failed"})
    outcomes = run_steps(plan(chain("a", "b")), {"a"}, recorder)
    assert next(outcome for outcome in outcomes if outcome.name == "b").is_good


def test_two_stages_run_side_by_side_and_no_more():
    steps = [Step(f"s{number}", "stage") for number in range(6)]
    recorder = Recorder({}, at_once=2, last="s5")
    run_steps(steps, set(), recorder)
    assert recorder.most == {"stage": 2}


@pytest.mark.parametrize(("gpus", "stages"), [(0, 2), (1, 2), (4, 4), (100, MOST_STAGES)])
def test_variants_spread_over_the_gpus(gpus, stages):
    steps = [Step(f"s{number}", "stage") for number in range(20)]
    recorder = Recorder({}, at_once=stages, last="s19")
    run_steps(steps, set(), recorder, places_for(gpus))
    assert recorder.most == {"stage": stages}
    assert places_for(gpus)["push"] == 1


def test_ready_stage_does_not_wait_behind_waiting_ones():
    steps = [Step("slow", "stage"), Step("after", "stage", ("slow",)), Step("free", "stage")]
    recorder = Recorder({}, at_once=2, last="after")
    run_steps(steps, set(), recorder)
    assert list(recorder.asked) == ["slow", "free", "after"]
