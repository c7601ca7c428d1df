"""Whether what a run needs outside of its checkout is there: `python -m tasks.probe`.

One JSON line per finding, as they come, for `python -m flows.check`. It writes one small object
into the store and removes it; no stage runs this.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

import httpx

from tasks.contract.stage import StageError, read_json
from tasks.outside import look
from tasks.params.data import API_KEY_VARIABLE, Completion
from tasks.params.evaluation import Store
from tasks.params.load import Params, load_params
from tasks.params.paths import OUTSIDE
from tasks.params.server import Server
from tasks.params.teach import TeacherEndpoint
from tasks.store.registry import Registry
from tasks.store.storage import Storage, open_filesystem, open_storage
from tasks.synthesize.examples import read_examples

Level = Literal["ok", "warning", "error"]

PROBE_OBJECT = "samovar-probe-"
"""How the name of the object starts; the rest is like no other."""
CONTENT = b"written by python -m flows.check\n"
ANSWER_WAIT_S = 5.0


def main() -> None:
    """Print every finding."""
    params = load_params()
    for name, probe in PROBES.items():
        try:
            for level, text in probe(params):
                print_finding(name, level, text)
        except StageError as error:
            print_finding(name, "error", str(error))


def print_finding(name: str, level: Level, text: str) -> None:
    """One line for `python -m flows.check`, at once: it may stop waiting for the next."""
    finding = {"name": name, "level": level, "text": text}
    sys.stdout.write(json.dumps(finding, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def processors(params: Params) -> Iterator[tuple[Level, str]]:
    """Threads and GPUs that section compute asks for."""
    compute = params.compute
    cores = os.cpu_count() or 1
    if compute.threads > cores:
        yield "warning", f"compute.threads is {compute.threads}, but there are {cores} cores"
    gpus = 0 if compute.device == "cpu" else _count_gpus()
    if compute.device == "cuda" and not gpus:
        yield (
            "error",
            "compute.device is cuda, but torch sees no GPU: set it to auto or cpu",
        )
    elif gpus and compute.processes > gpus:
        yield (
            "error",
            f"compute.processes is {compute.processes}, one per GPU, but there are {gpus}: "
            f"set it to {gpus}",
        )
    else:
        on = f"{gpus} GPUs" if gpus else f"{cores} cores, no GPU"
        yield "ok", f"{on}; compute.processes is {compute.processes}"


def _count_gpus() -> int:
    import torch  # takes seconds, and a profile for the CPU does not ask

    return torch.cuda.device_count()


def store(params: Params) -> Iterator[tuple[Level, str]]:
    """Whether the store can be written and read, creates a name once, keeps what is overwritten."""
    where = params.store
    storage = open_storage(where.url, where.endpoint_url)
    name = f"{PROBE_OBJECT}{uuid.uuid4().hex}.txt"
    storage.create(name, b"")
    try:
        is_taken = not storage.create(name, CONTENT)
        storage.write_bytes(name, CONTENT)
        is_same = storage.read_bytes(name) == CONTENT
    finally:
        left = _remove(storage, name)
    if is_same:
        yield "ok", f"{where.url} can be written and read"
    else:
        yield "error", f"{where.url} gives other bytes back than were written: do not use it"
    if not is_taken:
        yield (
            "warning",
            f"{where.url} creates a name that exists (it ignores If-None-Match), so two machines "
            "that publish at once may take the same version: let one at a time publish",
        )
    if left is not None:
        yield "warning", left
    yield from _versioning(where)


def _remove(storage: Storage, name: str) -> str | None:
    """Remove the object; keys that may delete nothing leave it there, which is said."""
    try:
        storage.delete(name)
    except StageError as error:
        return f"{name} stays in the store, deleting failed: {error}"
    return None


def _versioning(where: Store) -> Iterator[tuple[Level, str]]:
    if where.url.startswith("s3://"):
        bucket = where.url.removeprefix("s3://").split("/")[0]
        filesystem, _ = open_filesystem(where.url, where.endpoint_url)
        if not filesystem.is_bucket_versioned(bucket):  # pyright: ignore[reportAttributeAccessIssue]  # of s3fs
            yield (
                "warning",
                f"bucket {bucket} keeps no versions: what is overwritten or deleted is gone for "
                "good; switch versioning on",
            )


def llm(params: Params) -> Iterator[tuple[Level, str]]:
    """Whether the endpoint that writes queries answers and takes the key."""
    endpoint = params.synthesize.endpoint
    if endpoint is None:
        yield "ok", "no endpoint: queries are written offline"
        return
    if isinstance(endpoint.interface, Completion):
        for name in set(endpoint.interface.examples.values()):
            read_examples(name)
    yield _reach(endpoint, API_KEY_VARIABLE, "synthesize.endpoint")


def teachers(params: Params) -> Iterator[tuple[Level, str]]:
    """Whether the endpoints that teach answer and take their keys."""
    asked = params.teach.asked
    endpoints = {name: each for name, each in asked.items() if isinstance(each, TeacherEndpoint)}
    if not endpoints:
        yield "ok", "no teacher is behind an endpoint"
    for name, each in endpoints.items():
        yield _reach(each, each.key_variable, f"teach.teachers.{name}")


def _reach(endpoint: Server, key_variable: str | None, where: str) -> tuple[Level, str]:
    key = os.environ.get(key_variable, "") if key_variable else ""
    address = f"{endpoint.base_url.rstrip('/')}/models"
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = httpx.get(address, headers=headers, timeout=ANSWER_WAIT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return "error", f"cannot reach {endpoint.base_url} ({error}): check {where}"
    if answer.status_code in {401, 403}:
        variable = key_variable or f"{where}.key_variable"
        return "error", f"{address} refuses (HTTP {answer.status_code}): set {variable}"
    if answer.is_error:  # not every endpoint lists its models
        return (
            "ok",
            f"{endpoint.base_url} answers (HTTP {answer.status_code} for the list of models)",
        )
    return "ok", f"{endpoint.base_url} answers ({answer.status_code})"


def champion(params: Params) -> Iterator[tuple[Level, str]]:
    """Whether the gate could compare a new model with the newest published one."""
    where = params.store
    registry = Registry(open_storage(where.url, where.endpoint_url), params.publish.name)
    newest = next(reversed(registry.versions()), None)
    if newest is None:
        yield "ok", f"no model is published as {registry.name} yet"
        return
    ours, theirs = params.evaluate.tasks.keys(), newest.scores.keys()
    if ours == theirs:
        yield "ok", f"{newest.version} was evaluated on the same {len(ours)} tasks"
        return
    parts = {"only it has": sorted(theirs - ours), "it lacks": sorted(ours - theirs)}
    differing = "; ".join(f"{what} {', '.join(tasks)}" for what, tasks in parts.items() if tasks)
    yield (
        "error",
        f"{newest.version} was evaluated on other tasks than evaluate.tasks ({differing}), so the "
        "gate will publish no other model: evaluate the same tasks, or take another publish.name",
    )


def outside(params: Params) -> Iterator[tuple[Level, str]]:
    """What has changed where neither DVC nor git looks; hashes it, so it is asked last."""
    before = read_json(OUTSIDE) if OUTSIDE.exists() else {}
    changed = [stage for stage, found in look(params).items() if found != before.get(stage, {})]
    if changed:
        yield (
            "warning",
            f"{', '.join(changed)} would read other files than {OUTSIDE} records, and so run again",
        )
    else:
        yield "ok", f"all is as {OUTSIDE} records"


PROBES: dict[str, Callable[[Params], Iterator[tuple[Level, str]]]] = {
    "processors": processors,
    "llm": llm,
    "teachers": teachers,
    "store": store,
    "champion": champion,
    "outside": outside,
}

if __name__ == "__main__":
    main()
