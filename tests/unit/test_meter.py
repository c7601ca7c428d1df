"""What is recorded of the GPUs of a stage. The driver is made up."""

import pynvml
import pytest
import torch

from tasks.machine.gpus import meter

A, B, MIG = "GPU-a", "GPU-b", "MIG-c"


class Nvml:
    """NVML with these millijoules by UUID, read one after the other; none where it has no count."""

    NVMLError = pynvml.NVMLError

    def __init__(self, **counts: list[int]) -> None:
        self.counts = {f"GPU-{name}": values for name, values in counts.items()}
        self.opened = 0
        self.fails_to_start = False

    def nvmlInit(self) -> None:  # noqa: N802 - names of the driver's
        if self.fails_to_start:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle not in self.counts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.counts[handle].pop(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the next looks at the clock show."""
    times = [100.0, 160.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: times.pop(0))
    return times


def install(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> None:
    monkeypatch.setattr(meter, "pynvml", nvml)


def test_each_gpu_counts_its_seconds_and_joules(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    nvml = Nvml(a=[5_000, 9_005_000], b=[2**40, 2**40 + 1_000_000])
    install(monkeypatch, nvml)
    assert meter.Meter([A, B]).read() == {"gpu_s": 120.0, "energy_j": 10_000.0}
    assert nvml.opened == 0


def test_a_part_of_a_gpu_has_no_energy_of_its_own(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    nvml = Nvml(a=[1, 2])
    install(monkeypatch, nvml)
    assert meter.Meter([A, MIG]).read() == {"gpu_s": 120.0}
    assert nvml.opened == 0


def test_a_driver_that_does_not_start_counts_no_energy(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    nvml = Nvml(a=[1, 2])
    nvml.fails_to_start = True
    install(monkeypatch, nvml)
    assert meter.Meter([A]).read() == {"gpu_s": 60.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the library of the driver is there")
def test_a_machine_without_nvml_counts_no_energy(clock: list[float]) -> None:
    assert meter.Meter([A]).read() == {"gpu_s": 60.0}
