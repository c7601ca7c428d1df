"""One computation per GPU: who waits for whom, and what frees a GPU. The GPUs are made up."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks.contract import stage
from tasks.contract.stage import StageError
from tasks.machine.compute import use_compute
from tasks.machine.gpus import hold, visible
from tasks.machine.gpus.lock_files import guarded, own_record, read_record, try_lock, write_record
from tasks.params.load import Params, load_params
from tasks.params.paths import TIMINGS
from tasks.params.training import Compute
from tasks.training.contrastive import ContrastiveStage, run_training
from tests.unit.gpu_worker import COMMAND, Worker
from tests.unit.training_workspace import PROFILE, ROOT

A, B, C = "GPU-a", "GPU-b", "GPU-c"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="not root, NO SECOND USER TO BE HAD")


Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, and leaves none behind."""
    workers: list[Worker] = []

    def begin(*gpus: str, **options: Any) -> Worker:
        workers.append(Worker(*gpus, **options))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.let_go()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of locks, not made yet."""
    path = tmp_path / "locks"
    monkeypatch.setenv(hold.FOLDER_VARIABLE, str(path))
    monkeypatch.delenv(hold.VISIBLE, raising=False)
    return path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """This process sees GPUs A and B; what it takes is given back after the test."""
    monkeypatch.setenv(hold.VISIBLE, f"{A},{B}")
    monkeypatch.setattr(hold, "list_gpus", lambda: [A, B])
    monkeypatch.setattr(hold, "_held", held := {})
    yield folder
    for descriptor in held.values():
        os.close(descriptor)


@pytest.mark.parametrize("way", ["end", "kill"])
def test_the_second_waits_until_the_first_is_gone(way: str, start: Start, folder: Path) -> None:
    first = start(A)
    assert first.answer() == {"pid": first.pid, "held": [A], "visible": A}
    second = start(A)
    line = second.said()
    assert line.startswith(f"waiting for 1 of {A}: process {first.pid} ")
    assert line.endswith(f" holds {A}")
    assert second.is_waiting()
    getattr(first, way)()
    assert second.said().startswith(f"computing on {A} after ")
    assert second.held() == [A]


def test_it_says_behind_which_stage_of_which_checkout(start: Start, folder: Path) -> None:
    with subprocess.Popen([*COMMAND, "1", A], cwd=ROOT, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        line = start(A).said()
        first.kill()
    stage = rf"tests\.unit\.gpu_worker 1 {A} in {ROOT}"
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(rf"process {first.pid} \({stage}\) since {date} holds {A}$", line)


def test_what_is_free_is_taken_at_once_and_silently(start: Start, folder: Path) -> None:
    assert start(A, B, C).held() == [A]
    assert start(A, B, C, number=2).held() == [B, C]
    assert sorted(path.name for path in folder.iterdir()) == [A, B, C, "guard"]


def test_two_that_want_both_gpus_get_them_one_after_the_other(start: Start, folder: Path) -> None:
    first = start(A, B)
    assert first.held() == [A]
    second = start(A, B, number=2)
    assert f"waiting for 2 of {A}, {B}: process {first.pid} " in second.said()
    third = start(A, B, number=2)
    line = third.said()
    assert f"process {first.pid} " in line
    assert re.search(rf" holds {A}; process {second.pid} .* waits too$", line)
    first.end()
    second.said()
    assert second.held() == [A, B]
    assert third.is_waiting()
    second.end()
    third.said()
    assert third.held() == [A, B]


def test_one_that_wants_several_is_not_passed_by(start: Start, folder: Path) -> None:
    """With one GPU always free, single trainings could keep a pair of GPUs from ever coming up."""
    first = start(A, B)
    first.answer()
    pair = start(A, B, number=2)
    pair.said()
    single = start(A, B)
    assert f"process {pair.pid} " in single.said()
    assert single.is_waiting()
    pair.kill()
    single.said()
    assert single.held() == [B]
    assert not list(folder.glob("waiting-*"))


def test_one_that_wants_another_gpu_does_not_queue(start: Start, folder: Path) -> None:
    first = start(A)
    first.answer()
    start(A).said()
    assert start(A, B).held() == [B]


def test_gpus_are_chosen_among_those_made_visible(start: Start, folder: Path) -> None:
    given = {hold.VISIBLE: f"{C},{B}"}
    assert start(A, B, C, **given).answer()["visible"] == C
    assert start(A, B, C, **given).answer()["visible"] == B
    assert f"for 1 of {C}, {B}: " in start(A, B, C, **given).said()


def test_without_a_gpu_nothing_is_done(start: Start, folder: Path) -> None:
    answer = start(A, **{hold.VISIBLE: ""}).answer()
    assert (answer["held"], answer["visible"]) == ([], "")
    assert not folder.exists()


def test_a_forked_process_keeps_the_gpu_of_one_that_was_killed(start: Start, folder: Path) -> None:
    """Workers of a training that was killed may compute for a moment longer."""
    first = start(A, kind="forks")
    first.answer()
    first.kill()
    second = start(A)
    assert f"process {first.pid} " in second.said()
    assert second.is_waiting()
    first.end()
    second.said()
    assert second.held() == [A]


def test_the_second_process_of_a_training_holds_what_the_first_has(
    start: Start, folder: Path
) -> None:
    first = start(A, B, C, number=2, kind="leads", **{hold.VISIBLE: f"{C},{B},{A}"})
    assert first.answer()["visible"] == f"{C},{B}"
    child = first.answer()
    assert child["visible"] == f"{C},{B}"
    first.kill()
    other = start(A, B, C, number=2)
    line = other.said()
    assert f": process {first.pid} " in line
    assert line.endswith(f" holds {B}, {C}")
    assert other.is_waiting()
    os.kill(child["pid"], signal.SIGKILL)
    other.said()
    assert other.held() == [A, B]


def test_processes_of_torchrun_hold_what_the_first_has(start: Start, folder: Path) -> None:
    folder.mkdir()
    with (folder / A).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = start(A, B, C, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
        first = start(A, B, C, LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
        assert first.held() == second.held() == [B, C]


def test_more_gpus_than_there_are_is_an_error_with_both_numbers(in_process: Path) -> None:
    with pytest.raises(StageError, match=r"processes is 3, but CUDA sees 2 GPUs \(CUDA_VISIBLE_"):
        hold.hold_gpus(3)
    assert not list(in_process.glob("waiting-*"))


def test_a_process_takes_gpus_once(in_process: Path) -> None:
    assert hold.hold_gpus(1) == hold.hold_gpus(1) == [A]
    assert os.environ[hold.VISIBLE] == A


def test_the_record_of_a_stage_tells_how_long_it_held_them(
    in_process: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROFILE, "params.yaml")
    monkeypatch.setattr(stage, "_meters", [])

    def body(_: Params) -> None:
        time.sleep(0.2)
        hold.hold_gpus(2)
        time.sleep(0.2)

    stage.run_stage("pretrain", body)
    record = stage.read_json(TIMINGS / "pretrain.json")
    monkeypatch.setenv("RANK", "1")
    stage.run_stage("pretrain", lambda _: None)
    assert stage.read_json(TIMINGS / "pretrain.json") == record, "of the leading process"
    assert 2 * 0.2 <= record["gpu_s"] <= 2 * (record["wall_s"] - 0.2) + 0.02


def test_the_folder_is_for_everybody_whatever_the_umask(in_process: Path) -> None:
    umask = os.umask(0o077)
    try:
        hold.hold_gpus(1)
        assert in_process.stat().st_mode & 0o7777 == 0o1777
        assert {path.stat().st_mode & 0o777 for path in in_process.iterdir()} == {0o666}
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)


def test_the_folder_is_locked_as_well_while_a_gpu_is_held(in_process: Path) -> None:
    """systemd-tmpfiles, which removes files untouched for ten days, then passes it over."""
    hold.hold_gpus(1)
    folder = os.open(in_process, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)


def test_what_an_earlier_holder_wrote_is_gone(in_process: Path) -> None:
    in_process.mkdir()
    (in_process / A).write_text("x" * 10_000)
    hold.hold_gpus(1)
    record = read_record(in_process / A)
    assert record is not None
    assert record.pid == os.getpid()


def test_nobody_looks_at_the_files_while_another_does(start: Start, folder: Path) -> None:
    folder.mkdir()
    with guarded(folder):
        worker = start(A)
        while worker.is_waiting() and not is_blocked(worker.pid):
            pass
        assert worker.is_waiting()
        assert not (folder / A).exists()
    assert worker.held() == [A]


def is_blocked(pid: int) -> bool:
    """Whether the process waits for a lock in the kernel."""
    locks = Path("/proc/locks").read_text()
    return re.search(rf"-> FLOCK\s+ADVISORY\s+WRITE {pid} ", locks) is not None


@needs_root
def test_another_user_waits_as_well(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "locks"
        monkeypatch.setenv(hold.FOLDER_VARIABLE, str(folder))
        folder.mkdir()
        folder.chmod(0o1777)
        first = start(A, kind="nobody")
        first.answer()
        second = start(A)
        assert f"process {first.pid} " in second.said()
        third = start(A, kind="nobody")
        assert f"process {second.pid} " in third.said()
        second.kill()
        first.end()
        third.said()
        assert third.held() == [A]


def test_a_file_that_is_there_is_not_opened_to_be_made(
    in_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fs.protected_regular the kernel refuses that if the file is another user's."""
    in_process.mkdir()
    for name in ("guard", A):
        (in_process / name).touch()
    really_open = os.open

    def careful_open(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and Path(path).exists():
            raise PermissionError(path)
        return really_open(path, flags, mode)

    monkeypatch.setattr(os, "open", careful_open)
    assert hold.hold_gpus(1) == [A]


@pytest.mark.parametrize("mode", [0o755, 0o500], ids=oct)
def test_a_folder_that_is_not_for_all_is_an_error(start: Start, mode: int, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        locks = Path(place) / "locks"
        locks.mkdir(mode)
        Path(place).chmod(0o755)
        is_root = os.getuid() == 0
        worker = start(A, kind="nobody" if is_root else "", **{hold.FOLDER_VARIABLE: str(locks)})
        if not is_root and mode & 0o200:
            assert worker.held() == [A]
            return
        assert f"the GPU locks in {locks} cannot be used" in worker.said()


def test_a_link_in_the_folder_is_not_followed(in_process: Path) -> None:
    """Everybody may write there: a link would let one user have files of another emptied."""
    in_process.mkdir()
    victim = in_process.parent / "victim"
    victim.write_text("precious")
    (in_process / A).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        hold.hold_gpus(1)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"pid": "\\ud800"}'])
def test_a_holder_that_does_not_say_who_it_is_is_waited_for(
    content: str, start: Start, folder: Path
) -> None:
    folder.mkdir()
    (folder / A).write_text(content)
    with (folder / A).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        worker = start(A)
        assert "a process that does not say who it is" in worker.said()
    worker.said()
    assert worker.held() == [A]


def test_one_line_every_30_seconds_and_only_when_it_is_another(
    in_process: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_process.mkdir()
    holders = [try_lock(in_process / name) for name in (A, B)]
    clock = SimpleNamespace(now_s=0.0)

    def sleep(seconds: float) -> None:
        clock.now_s += seconds
        for descriptor in holders:
            assert descriptor is not None
            if clock.now_s < 100:
                write_record(descriptor, replace(own_record(), command=f"{clock.now_s}"))
            if clock.now_s >= 250:
                os.close(descriptor)

    monkeypatch.setattr(hold, "time", SimpleNamespace(monotonic=lambda: clock.now_s, sleep=sleep))
    caplog.set_level("INFO")
    hold.hold_gpus(1)
    said = [record.getMessage() for record in caplog.records]
    found = [re.findall(r"\((\S+) in ", line)[:1] for line in said]
    assert found == [[], ["30.0"], ["60.0"], ["90.0"], ["99.5"], []]
    assert said[-1] == f"computing on {A} after 250 s"


class Driver:
    """A CUDA driver with these devices: UUID of the GPU and of the device itself."""

    def __init__(self, *devices: tuple[bytes, bytes], starts: int = 0, names: int = 0) -> None:
        self.devices, self.starts, self.names = devices, starts, names

    def cuInit(self, _: int) -> int:  # noqa: N802 - names of the driver's
        return self.starts

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = len(self.devices)
        return 0

    def cuDeviceGetUuid(self, buffer: Any, device: int) -> int:  # noqa: N802
        buffer.raw = self.devices[device][0]
        return 0

    def cuDeviceGetUuid_v2(self, buffer: Any, device: int) -> int:  # noqa: N802
        buffer.raw = self.devices[device][1]
        return self.names


FIRST, SECOND, PART = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))


def test_gpus_are_named_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver((SECOND, SECOND), (FIRST, FIRST), (FIRST, PART))
    monkeypatch.setattr(visible.ctypes, "CDLL", lambda _: driver)
    assert visible.visible_gpus() == [
        "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f",
        "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
        "MIG-20212223-2425-2627-2829-2a2b2c2d2e2f",
    ]


def test_a_driver_that_does_not_start_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible.ctypes, "CDLL", lambda _: Driver((FIRST, FIRST), starts=100))
    assert visible.visible_gpus() == []


def test_a_gpu_without_a_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible.ctypes, "CDLL", lambda _: Driver((FIRST, FIRST), names=999))
    with pytest.raises(OSError, match="no UUID of GPU 0"):
        visible.visible_gpus()


def fake_script(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    script = folder / "visible.py"
    script.write_text(text)
    monkeypatch.setattr(visible, "__file__", str(script))


def test_the_driver_is_asked_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_script(tmp_path, monkeypatch, "import os; print(f'GPU-{os.getppid()}\\nGPU-2')")
    assert hold.list_gpus() == [f"GPU-{os.getpid()}", "GPU-2"]


def test_what_the_driver_answers_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_script(tmp_path, monkeypatch, "raise OSError('no UUID of GPU 0')")
    with pytest.raises(StageError, match=r"could not be listed: OSError: no UUID of GPU 0"):
        hold.list_gpus()


def test_a_driver_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_script(tmp_path, monkeypatch, "import signal; signal.pause()")
    monkeypatch.setattr(hold, "ANSWER_WAIT_S", 0.1)
    with pytest.raises(StageError, match="has not answered"):
        hold.list_gpus()


def compute_of(device: str) -> Compute:
    section = load_params(PROFILE).compute
    return section.model_copy(update={"device": device, "precision": "fp32", "processes": 3})


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A torch that could use two GPUs; what is done with them."""
    calls: list[str] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not calls.append("is_available"))
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        hold, "hold_gpus", lambda number: [calls.append(f"hold {number}"), A, B][1 : number + 1]
    )
    return calls


def test_gpus_are_held_before_cuda_starts(cuda: list[str]) -> None:
    assert use_compute(compute_of("auto"), gpus=2).device.type == "cuda"
    assert cuda == ["hold 2", "is_available", "init"]


def test_cuda_that_has_started_before_is_an_error(cuda: list[str]) -> None:
    """It would compute on GPU 0 whatever is held: it does not read CUDA_VISIBLE_DEVICES again."""
    with pytest.raises(StageError, match=r"1 GPUs are held .* and sees 2"):
        use_compute(compute_of("cuda"))


def test_a_gpu_that_cannot_be_held_is_said(
    cuda: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hold, "hold_gpus", lambda _: [])
    use_compute(compute_of("cuda"))
    assert "no lock is held" in caplog.text


def test_a_stage_on_the_cpu_does_not_load_the_locks(
    cuda: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tasks.machine.gpus.hold")
    use_compute(compute_of("cpu"))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    use_compute(compute_of("auto"))
    assert "tasks.machine.gpus.hold" not in sys.modules


def test_a_training_asks_for_a_gpu_per_process(
    cuda: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(PROFILE).model_copy(update={"compute": compute_of("cuda")})
    monkeypatch.setattr(hold, "hold_gpus", lambda number: pytest.fail(f"asked for {number}"))
    stage = ContrastiveStage("s", params.pretrain.training, {}, Path(), Path(), is_mined=False)
    with pytest.raises(pytest.fail.Exception, match="asked for 3"):
        run_training(params, stage)
