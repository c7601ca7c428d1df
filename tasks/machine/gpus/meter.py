"""What a stage used of its GPUs: seconds, and joules as NVML counts them."""

import ctypes
import time
from collections.abc import Sequence

LIBRARY = "libnvidia-ml.so.1"
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
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    try:
        counts = [_millijoules(nvml, gpu) for gpu in gpus]
    finally:
        nvml.nvmlShutdown()
    known = [count for count in counts if count is not None]
    return MILLI * sum(known) if len(known) == len(gpus) else None


def _millijoules(nvml: ctypes.CDLL, gpu: str) -> int | None:
    handle, count = ctypes.c_void_p(), ctypes.c_ulonglong()
    failed = nvml.nvmlDeviceGetHandleByUUID(gpu.encode(), ctypes.byref(handle))
    failed = failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(count))
    return None if failed else count.value
