"""One DVC stage as one Prefect task, and beside it the other kinds: a hook, an update, a push.

DVC decides whether a stage has work to do; Prefect shows it. A stage is never retried: DVC removes
its outputs first, and a training resumes by itself in the next run. Only updates of data and the
last push are, since the network may come back.
"""

import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from prefect.tasks import Task

from flows.checkout.news import marked
from flows.checkout.remote import refusal_hint
from flows.errors import StageFailedError
from flows.processes.process import DVC, stream
from flows.show.artifacts import artifact_key
from flows.show.progress import StageProgress
from flows.show.reasons import reason_of
from flows.terminal import say_output, say_stage

TAIL_LINES = 30
NETWORK_DELAYS_S = [1.0, 3.0, 9.0]
LEVELS = {"INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}
REFUSED = re.compile(
    r"\b403\b|Forbidden|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|Unable to locate credentials|NoSuchBucket|[Bb]ucket .* does not exist"
)
"""What object storage says when trying again is no use."""

UNCHANGED = "didn't change, skipping"
"""How DVC ends an update without news."""

HINTS = (
    "Running stage '",
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
    "Having any troubles?",
)
"""Advice of DVC to a person who typed the command."""


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    stage: str, *, is_stale: bool, is_forced: bool, blocked_by: str | None
) -> State[float]:
    """Bring one DVC stage up to date.

    Args:
        stage: Its address in dvc.yaml.
        is_stale: Whether what it reads or writes has changed, as far as known; DVC has the last
            word.
        is_forced: Run it even when nothing has changed.
        blocked_by: Stage whose failure makes this one impossible.

    Returns:
        Completed, Skipped (up to date), Cached (restored from DVC's run cache) or NotRun, with
        the seconds it took.

    Raises:
        StageFailedError: It ended with a non-zero status; the message ends with its last lines.
    """
    if blocked_by is not None:
        return _not_run(stage, blocked_by)
    if not (is_stale or is_forced):
        say_stage(stage, "skipped, up to date")
        return Completed(name="Skipped", message="up to date", data=0.0)
    started = time.monotonic()
    force = ["--force"] if is_forced else []
    lines = _run(stage, [*DVC, "repro", "--single-item", *force, stage])
    name = _what_dvc_did(stage, lines)
    seconds = time.monotonic() - started
    say_stage(stage, f"{DONE[name]}, {seconds:.1f} s")
    return Completed(name=name, message=f"{DONE[name]} in {seconds:.1f} s", data=seconds)


@task(name="hook", task_run_name="{hook}", cache_policy=NO_CACHE, persist_result=False)
def run_hook(hook: str, *, blocked_by: str | None) -> State[float]:
    """Run `python -m tasks.HOOK`, a process that is no stage since it reads or writes a registry.

    Raises:
        StageFailedError: It ended with a non-zero status.
    """
    if blocked_by is not None:
        return _not_run(hook, blocked_by)
    started = time.monotonic()
    _run(hook, [sys.executable, "-m", f"tasks.{hook}"])
    seconds = time.monotonic() - started
    say_stage(hook, f"ran, {seconds:.1f} s")
    return Completed(message=f"ran in {seconds:.1f} s", data=seconds)


def _may_come_back(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """Whether a failed push or update is worth another try."""
    return not REFUSED.search(state.message or "")


@task(
    name="update",
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(NETWORK_DELAYS_S),
    retry_delay_seconds=NETWORK_DELAYS_S,
    retry_condition_fn=_may_come_back,
)
def update(name: str, file: str) -> State[float]:
    """Fetch the data of one imported `.dvc` file, if its source has others than it records.

    Returns:
        Completed or Skipped (nothing new), with the seconds it took.

    Raises:
        StageFailedError: The source cannot be reached or refuses; the next run tries again.
    """
    started = time.monotonic()
    with marked(file):
        lines = _run(name, [*DVC, "update", file])
    seconds = time.monotonic() - started
    is_new = not any(UNCHANGED in line for line in lines)
    text = "new data" if is_new else "nothing new"
    say_stage(name, f"{text}, {seconds:.1f} s")
    return Completed(name="Completed" if is_new else "Skipped", message=text, data=seconds)


@task(name="push", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def push(name: str, stages: list[str]) -> float:
    """Copy the outputs of `stages`, or of everything when empty, to the DVC remote.

    One try: a push keeps DVC's lock, so tries on a dead network would hold up the stages.

    Returns:
        Seconds it took.

    Raises:
        StageFailedError: The remote cannot be reached or refuses; what is there stays whole, and
            the next push continues.
    """
    started = time.monotonic()
    try:
        _run(name, [*DVC, "push", *stages])
    except StageFailedError as error:
        if not REFUSED.search(str(error)):
            raise
        raise StageFailedError(f"{error}\n{refusal_hint()}") from None
    seconds = time.monotonic() - started
    say_stage(name, f"done, {seconds:.1f} s")
    return seconds


push_insistently = push.with_options(
    name="last push",
    retries=len(NETWORK_DELAYS_S),
    retry_delay_seconds=NETWORK_DELAYS_S,
    retry_condition_fn=_may_come_back,
)
"""The push at the end of a run, when nothing waits: network errors are tried again."""

DONE = {
    "Completed": "ran",
    "Cached": "restored from the run cache",
    "Skipped": "skipped, up to date",
}


def _run(name: str, command: list[str]) -> list[str]:
    """Run `command` with its lines in the run's log and on the terminal; return the lines."""
    say_stage(name, "started")
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    status = stream(command, _line_writer(name, tail))
    if status:
        reason = reason_of(tail)
        message = f"{name} failed with status {status}{'' if reason is None else f', {reason}'}"
        say_stage(name, f"FAILED with status {status}")
        raise StageFailedError("\n".join([f"{message}; its last lines:", *tail]))
    return list(tail)


def _line_writer(name: str, tail: deque[str]) -> Callable[[str], None]:
    log = get_run_logger()
    progress = StageProgress(name, artifact_key(f"progress-{name}"))

    def write(line: str) -> None:
        if line.startswith(HINTS):
            return
        tail.append(line)
        progress.show(line)
        word, _, rest = line.partition(" ")
        level = LEVELS.get(word.rstrip(":"))
        log.log(level or logging.INFO, "%s", rest if level else line)
        say_output(name, rest if level == logging.INFO else line)

    return write


def _what_dvc_did(stage: str, lines: list[str]) -> str:
    text = "\n".join(lines)
    if f"Stage '{stage}' didn't change, skipping" in text:
        return "Skipped"
    return "Cached" if f"Stage '{stage}' is cached - skipping run" in text else "Completed"


def _not_run(name: str, blocked_by: str) -> State[float]:
    message = f"not run, since {blocked_by} failed"
    say_stage(name, message)
    # failed, not cancelled: Prefect lets only what follows a failure start, to draw the edge
    return Failed(name="NotRun", message=message)
