"""What a stage used of its GPUs: seconds, and joules as NVML counts them."""

import time
from collections.abc import Sequence

import pynvml

MILLI = 1e-3


class Meter:
    """Counts from its making."""

    def __init__(self, gpus: Sequence[str]) -> None:
        """Start counting for these GPUs, given by UUID."""
        self._gpus = list(gpus)
        self._started = time.monotonic()
        self._before = _total_joules(self._gpus)

    def read(self) -> dict[str, float]:
        """`gpu_s`, one for each second of each GPU, and `energy_j` where NVML counts it.

        The energy is that of the whole GPU, with what it takes idle.
        """
        used = {"gpu_s": round(len(self._gpus) * (time.monotonic() - self._started), 2)}
        after = _total_joules(self._gpus)
        if self._before is None or after is None:
            return used
        return used | {"energy_j": round(after - self._before, 1)}


def _total_joules(gpus: Sequence[str]) -> float | None:
    """Since the driver was loaded; None without NVML, before Volta and for MIG instances."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByUUID(gpu) for gpu in gpus]
        return MILLI * sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
