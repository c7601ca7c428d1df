"""How many GPUs a run thinks it may spread over. The script that lists them is made up."""

from pathlib import Path

import pytest

from flows.run import gpus


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is run in place of tasks/machine/gpus/visible.py."""
    file = tmp_path / "visible.py"
    monkeypatch.setattr(gpus, "SCRIPT", str(file))
    return file


def test_a_line_is_a_gpu(script: Path) -> None:
    script.write_text("print('GPU-a\\nGPU-b')")
    assert gpus.count_gpus("auto") == 2


def test_a_chain_on_the_processor_asks_for_none(script: Path) -> None:
    script.write_text("print('GPU-a')")
    assert gpus.count_gpus("cpu") == 0
    assert gpus.count_gpus("cuda") == 1


def test_a_driver_that_fails_or_hangs_is_said(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gpus, "say", said.append)
    script.write_text("raise OSError('no UUID of GPU 3')")
    assert gpus.count_gpus("auto") == 0
    assert said == ["the GPUs could not be listed: OSError: no UUID of GPU 3"]
    monkeypatch.setattr(gpus, "ANSWER_WAIT_S", 0.2)
    script.write_text("import time; time.sleep(30)")
    assert gpus.count_gpus("auto") == 0
    assert "has not answered" in said[1]


def test_the_real_script_answers() -> None:
    assert gpus.count_gpus("auto") >= 0
