"""A full disk and a sudden death leave nothing under the final name."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tasks.contract.stage import read_json
from tests.unit.file_limit import NO_BYTECODE, limit_files

REPOSITORY = Path(__file__).parents[3]
FOREVER = """
import threading
from tasks.ingest import __main__ as stage

def stop_here(*_args, **_kwargs):
    print("writing", flush=True)
    threading.Event().wait()

stage.write_table = stop_here
stage.main()
"""


def start(
    root: Path, *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", **NO_BYTECODE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def outputs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "artifacts").iterdir())


def contents(root: Path) -> dict[str, bytes]:
    """Every file the stage left."""
    folder = root / "artifacts" / "ingest"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def unbroken(corpus) -> dict[str, bytes]:
    """What the stage writes when nothing happens; `corpus` is as before."""
    corpus.run()
    found = contents(corpus.root)
    shutil.rmtree(corpus.root / "artifacts")
    return found


def run_again(root: Path) -> None:
    with start(root, "-m", "tasks.ingest") as again:
        _, log = again.communicate(timeout=60)
    assert again.returncode == 0, log


@pytest.mark.parametrize(
    ("size_bytes", "file"), [(500, "documents.admitted"), (5_000, "questions.admitted")]
)
def test_a_full_disk_is_named_and_the_stage_runs_again(
    corpus, unbroken: dict[str, bytes], size_bytes: int, file: str
) -> None:
    limit = partial(limit_files, size_bytes)
    with start(corpus.root, "-m", "tasks.ingest", before=limit) as stopped:
        _, log = stopped.communicate(timeout=60)
    assert stopped.returncode == 1, log
    assert "Traceback" not in log
    assert re.search(rf"stage ingest stopped: cannot write \S+/spool/{file} .*free space", log), log
    assert outputs(corpus.root) == []
    run_again(corpus.root)
    assert contents(corpus.root) == unbroken


def test_after_a_kill_the_stage_runs_again(corpus, unbroken: dict[str, bytes]) -> None:
    with start(corpus.root, "-c", FOREVER) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "writing\n"
        killed.send_signal(signal.SIGKILL)
    assert outputs(corpus.root) == [f".ingest.partial-{killed.pid}"]
    run_again(corpus.root)
    assert outputs(corpus.root) == ["ingest", "timings"]
    assert contents(corpus.root) == unbroken
    assert read_json(corpus.root / "artifacts" / "timings" / "ingest.json")["wall_s"] > 0


def test_bad_input_ends_with_a_message_and_no_trace(corpus) -> None:
    corpus.sources["questions"]["path"] = "gone.jsonl"
    corpus.save()
    with start(corpus.root, "-m", "tasks.ingest") as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stage ingest stopped: source questions: nothing at corpus/gone.jsonl" in log
    assert "Traceback" not in log
