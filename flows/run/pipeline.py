"""The flow: new data, the stages of dvc.yaml as tasks in DVC's order, push, check, publish, tag."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.checkout.fit import check_fit
from flows.checkout.leftovers import remove_leftovers
from flows.checkout.locks import clean_rwlock, hold_checkout
from flows.checkout.news import find_imports
from flows.checkout.record import record_version
from flows.checkout.remote import use_remote
from flows.errors import FlowError, StageFailedError
from flows.plan.dag import Stage, after, changed, check_data, read_stages, select
from flows.plan.forecast import forecast, forecast_rows, total
from flows.plan.schedule import (
    AT_ONCE,
    CHAMPION,
    MOST_STAGES,
    Kind,
    Outcome,
    Step,
    places_for,
    plan,
    run_steps,
)
from flows.processes.orphan import end_with_worker
from flows.processes.process import open_run, stop_all
from flows.profile import install_profile
from flows.results import reads_outside
from flows.run.alive import stays_running
from flows.run.dead_runs import close_dead_runs
from flows.run.gpus import count_gpus
from flows.run.name import run_name
from flows.run.runner import PrefectRunner
from flows.show import artifacts, history
from flows.show.notify import tell_end, tell_published, tell_refused
from flows.show.version import checkout, read_version, refusal
from flows.terminal import say, use_terminal
from tasks.params.load import Params, load_params

PUBLISH, OUTSIDE = "publish", "outside"

# untyped, since Prefect's TaskRunner is invariant in its kind of future
THREADS: Any = ThreadPoolTaskRunner(max_workers=MOST_STAGES + sum(AT_ONCE.values()))


@flow(
    name="retrain",
    flow_run_name=run_name,
    task_runner=THREADS,
    persist_result=False,
    on_failure=[tell_end],
    on_crashed=[tell_end],
    on_cancellation=[tell_end],
)
def retrain(  # noqa: PLR0913 - what the form of the UI asks for
    stages: list[str] | None = None,
    force: list[str] | None = None,
    publish: bool = True,
    from_stage: str | None = None,
    profile: str | None = None,
    dry_run: bool = False,
    *,
    wait_hours: float = 0.0,
) -> list[Outcome]:
    """Bring the stages up to date, push their outputs, publish the model if the gate lets it.

    Args:
        stages: Only these, without what they depend on; all when empty.
        force: Run these even when nothing has changed.
        publish: Whether a full run ends with `python -m tasks.publish`.
        from_stage: Run this one and all that follow it even when nothing has changed.
        profile: First make params.yaml a copy of this file of infra/profiles.
        dry_run: Only show what would run, why, how long it took last time and what it costs.
        wait_hours: How long to wait while another run holds the checkout.

    Returns:
        How each step ended.

    Raises:
        StageFailedError: A stage, a hook or the final push failed; all that does not depend on it
            has been run.
        FlowError: The run could not start, or left something out of date.
    """
    use_terminal()
    end_with_worker()
    root = Path.cwd()
    if dry_run and profile:
        raise FlowError(
            f"a dry run leaves params.yaml alone: drop the profile {profile}, or install it first "
            f"with `make profile PROFILE={profile}`"
        )
    with stays_running(UUID(flow_run.get_id())), hold_checkout(root, wait_hours):
        if profile:
            install_profile(profile)
        params = load_params()
        check_fit(root, params.record)
        _clean_up(root, params)
        say(f"outputs go to {use_remote(root, params.store)}")
        every = read_stages()
        chosen = select(every, stages) if stages else every
        forced = {stage.name for stage in select(every, force or [])}
        forced |= after(every, from_stage) if from_stage else set()
        if dry_run:
            expected = forecast(chosen, changed(), forced)
            artifacts.show_forecast(forecast_rows(expected), total(expected, params.cost))
            return []
        return _run(root, params, chosen, forced, is_whole=chosen == every, publish=publish)


def _run(
    root: Path,
    params: Params,
    chosen: list[Stage],
    forced: set[str],
    *,
    is_whole: bool,
    publish: bool,
) -> list[Outcome]:
    """Everything that starts processes; whatever ends it, none of them is left."""
    open_run()
    keep = _Keeper(params)
    try:
        runner = PrefectRunner(forced)
        outcomes = _update_data(runner) + _look_outside(runner, params)
        changes = changed()
        check_data(changes)
        places = places_for(count_gpus(params.compute.device))
        outcomes += _run_stages(runner, chosen, {*changes, *forced}, places)
        outcomes += _finish(runner, chosen, is_whole=is_whole)
        if publish and is_whole:
            outcomes += _publish(runner)
            _show_publication(root, params, outcomes)
    except BaseException as error:
        stop_all()
        keep.end([], error)
        raise
    keep.end(outcomes, None)
    return outcomes


class _Keeper:
    """Adds this run to the history when it ends."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._date = datetime.now(UTC)
        self._started = time.monotonic()

    def end(self, outcomes: list[Outcome], error: BaseException | None) -> None:
        """Add it, and show the table unless the run is being stopped from outside.

        A full disk or a lost server must not hide why the run failed: that is said beside it.
        """
        seconds = time.monotonic() - self._started
        text = None if error is None else str(error) or type(error).__name__
        try:
            history.add(history.describe(self._date, seconds, outcomes, text))
            if error is None or isinstance(error, FlowError):
                artifacts.show_history(history.history_rows(history.last(), self._params))
        except Exception as trouble:  # noqa: BLE001 - whatever the server answers
            say(f"this run is missing in the history or its table: {trouble}")


def _clean_up(root: Path, params: Params) -> None:
    """Remove what killed runs and earlier profiles have left behind."""
    for line in [*clean_rwlock(root / ".dvc" / "tmp"), *remove_leftovers(params)]:
        say(line)
    for name in close_dead_runs(root, UUID(flow_run.get_id())):
        say(f"the run {name} had died")


def _update_data(runner: PrefectRunner) -> list[Outcome]:
    """Fetch what is new at the sources of imported data, before anything looks at the data."""
    steps = [Step(f"update {name}", "update", targets=(name,)) for name in find_imports()]
    outcomes = run_steps(steps, set(), runner)
    _raise_failures(outcomes)
    return outcomes


def _look_outside(runner: PrefectRunner, params: Params) -> list[Outcome]:
    """Record what lies outside of the checkout, for DVC to see what has changed there."""
    if not reads_outside(params):
        return []
    outcomes = run_steps([Step(OUTSIDE, "hook")], {OUTSIDE}, runner)
    _raise_failures(outcomes)
    return outcomes


def _run_stages(
    runner: PrefectRunner, chosen: list[Stage], stale: set[str], places: dict[Kind, int]
) -> list[Outcome]:
    """Run what is stale, in order, each output pushed as it is written."""
    outcomes = run_steps(plan(chosen), {*stale, CHAMPION}, runner, places)
    artifacts.show_run(chosen, outcomes)
    # a push of one stage that failed is no reason: the one of everything decides
    _raise_failures([outcome for outcome in outcomes if outcome.kind != "push"])
    return outcomes


def _publish(runner: PrefectRunner) -> list[Outcome]:
    """Start the publication, which asks the gate."""
    outcomes = run_steps([Step(PUBLISH, "hook")], {PUBLISH}, runner)
    _raise_failures(outcomes)
    return outcomes


def _show_publication(root: Path, params: Params, outcomes: list[Outcome]) -> None:
    """Say what became of the model; have git keep what was run for a published one."""
    version = read_version(params)
    if version is None:
        reasons = refusal()
        artifacts.show_publication("\n".join(["Nothing published:", "", *_items(reasons)]))
        if any(outcome.kind == "stage" and outcome.is_new for outcome in outcomes):
            tell_refused(reasons)
        return
    tag = record_version(root, params.record, version.tag, version.commit_message())
    artifacts.show_publication(version.markdown(tag))
    if tag is not None:
        say(f"git keeps it: {' && '.join(checkout(tag))} finds everything up to date")
    if version.is_new:
        tell_published(version.tag, version.commit_message())


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _finish(runner: PrefectRunner, chosen: list[Stage], *, is_whole: bool) -> list[Outcome]:
    """Push once more, since an earlier push may have failed, and see that nothing is stale."""
    names = tuple(stage.name for stage in chosen)
    last = Step(
        "push everything" if is_whole else "push again", "last push", (), () if is_whole else names
    )
    outcomes = run_steps([last], {last.name}, runner)
    _raise_failures(outcomes)
    left = {name: why for name, why in changed().items() if is_whole or name in names}
    if left:
        lines = "\n".join(f"  {name}: {why}" for name, why in left.items())
        raise FlowError(f"the run left stages out of date; was a file edited meanwhile?\n{lines}")
    return outcomes


def _raise_failures(outcomes: list[Outcome]) -> None:
    """Fail the run with what failed and what could not run for it."""
    failed = [outcome for outcome in outcomes if not outcome.is_good and outcome.state != "NotRun"]
    if not failed:
        return
    blocked = [outcome.name for outcome in outcomes if outcome.state == "NotRun"]
    note = [f"not run for that reason: {', '.join(blocked)}"] if blocked else []
    raise StageFailedError("\n\n".join([*(outcome.message for outcome in failed), *note]))
