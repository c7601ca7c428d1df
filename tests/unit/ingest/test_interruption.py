"""A full disk and a sudden death leave nothing under the final name."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.stage import read_json

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


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "artifacts").iterdir())


def test_a_full_disk_is_named_and_leaves_nothing(corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match=r"cannot write .*examples/part-00000\.parquet.*No space"):
        corpus.run()
    assert outputs(corpus.root) == []


def test_after_a_kill_the_stage_runs_again(corpus) -> None:
    corpus.save()
    with start(corpus.root, "-c", FOREVER) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "writing\n"
        killed.send_signal(signal.SIGKILL)
    assert outputs(corpus.root) == [f".ingest.partial-{killed.pid}"]
    with start(corpus.root, "-m", "tasks.ingest") as again:
        _, log = again.communicate(timeout=60)
    assert again.returncode == 0, log
    assert outputs(corpus.root) == ["ingest", "timings"]
    assert read_json(corpus.root / "artifacts" / "timings" / "ingest.json")["wall_s"] > 0


def test_bad_input_ends_with_a_message_and_no_trace(corpus) -> None:
    corpus.sources["questions"]["path"] = "gone.jsonl"
    corpus.save()
    with start(corpus.root, "-m", "tasks.ingest") as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stage ingest stopped: source questions: nothing at corpus/gone.jsonl" in log
    assert "Traceback" not in log
