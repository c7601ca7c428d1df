import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.checkout.locks import check_checkout_is_free, clean_rwlock, hold_checkout
from flows.errors import CheckoutBusyError


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def own_command() -> str:
    """What DVC writes for a process: its arguments after the interpreter's own."""
    return " ".join(["program", *Path("/proc/self/cmdline").read_text().split("\0")[1:-1]])


def write_rwlock(folder: Path, write: dict, read: dict) -> Path:
    path = folder / "rwlock"
    path.write_text(json.dumps({"write": write, "read": read}))
    return path


def test_second_holder_learns_who_the_first_is(tmp_path):
    with hold_checkout(tmp_path), pytest.raises(CheckoutBusyError, match=f"process {os.getpid()}"):
        check_checkout_is_free(tmp_path)


def test_a_run_that_may_wait_does_and_says_for_whom(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("flows.checkout.locks.say", said.append)
    with contextlib.ExitStack() as first:
        first.enter_context(hold_checkout(tmp_path))
        # the first run ends while the second looks away
        monkeypatch.setattr("flows.checkout.locks.time.sleep", lambda _: first.close())
        with hold_checkout(tmp_path, wait_hours=24):
            pass
    assert f"process {os.getpid()}" in said[0]
    assert "waits for it, at most 24 h (wait_hours)" in said[0]
    assert said[1:] == ["the checkout is free: this run begins"]


def test_a_run_does_not_wait_longer_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.checkout.locks.CHECKOUT_POLL_S", 0.001)
    with (
        hold_checkout(tmp_path),
        pytest.raises(CheckoutBusyError, match=r"another run .* has waited 1e-06 h"),
        hold_checkout(tmp_path, wait_hours=1e-6),
    ):
        pass


def test_checkout_is_free_again_after_the_run(tmp_path):
    with hold_checkout(tmp_path):
        pass
    check_checkout_is_free(tmp_path)


def test_checkout_is_free_after_its_holder_was_killed(tmp_path):
    code = (
        "import pathlib, sys, flows.checkout.locks as l\n"
        f"with l.hold_checkout(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckoutBusyError):
            check_checkout_is_free(tmp_path)
        holder.kill()
    check_checkout_is_free(tmp_path)


def test_entries_of_dead_processes_are_dropped(tmp_path):
    alive = {"pid": os.getpid(), "cmd": own_command()}
    dead = {"pid": dead_pid(), "cmd": "dvc repro train"}
    path = write_rwlock(tmp_path, {"a": dead, "b": alive}, {"c": [dead, alive], "d": [dead]})
    dropped = clean_rwlock(tmp_path)
    assert json.loads(path.read_text()) == {"write": {"b": alive}, "read": {"c": [alive]}}
    assert len(dropped) == 3


def test_entry_of_another_process_with_a_reused_id_is_dropped(tmp_path):
    """DVC itself believes the id, and blocks for ever: usual in containers, where 1 is reused."""
    path = write_rwlock(tmp_path, {"a": {"pid": os.getpid(), "cmd": "dvc repro train"}}, {})
    clean_rwlock(tmp_path)
    assert json.loads(path.read_text())["write"] == {}


@pytest.mark.parametrize("content", ["", '{"write": {"a": {"pid"', "[]", '{"write": {"a": 1}}'])
def test_broken_file_is_mended(tmp_path, content):
    (tmp_path / "rwlock").write_text(content)
    assert "was broken" in clean_rwlock(tmp_path)[0]
    assert json.loads((tmp_path / "rwlock").read_text()) == {}


def test_untouched_when_nothing_is_dead(tmp_path):
    path = write_rwlock(tmp_path, {"a": {"pid": os.getpid(), "cmd": own_command()}}, {})
    before = path.stat().st_mtime_ns
    assert clean_rwlock(tmp_path) == []
    assert path.stat().st_mtime_ns == before


def test_waits_for_an_edit_that_is_going_on(tmp_path):
    (tmp_path / "rwlock").write_text("")
    with (tmp_path / "rwlock.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        cleaner = threading.Thread(target=clean_rwlock, args=(tmp_path,))
        cleaner.start()
        cleaner.join(0.3)
        assert cleaner.is_alive()
        assert (tmp_path / "rwlock").read_text() == ""
    cleaner.join(10)
    assert (tmp_path / "rwlock").read_text() == "{}"
