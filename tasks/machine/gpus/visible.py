"""The GPUs that CUDA shows to a process: one UUID a line, in its order.

Run as a script: the driver reads CUDA_VISIBLE_DEVICES when it starts in a process and never again,
so a process that has yet to choose its GPUs must not be the one that asks. The driver is asked, not
NVML, which counts by bus where CUDA counts the fastest first, and knows nothing of the variable.
Nothing of ours is imported.
"""

import ctypes
import sys
import uuid

LIBRARY = "libcuda.so.1"


def visible_gpus() -> list[str]:
    """UUIDs as nvidia-smi writes them, of GPUs or of the MIG instance; none without a driver.

    Raises:
        OSError: The driver counts GPUs it cannot name.
    """
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return []
    number = ctypes.c_int()
    # starts the driver without a context: no memory of a GPU is taken
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number)):
        return []
    return [_name(cuda, device) for device in range(number.value)]


def _name(cuda: ctypes.CDLL, device: int) -> str:
    """The UUID; of a MIG instance the first call tells that of its GPU, the second its own."""
    of_gpu, own = ctypes.create_string_buffer(16), ctypes.create_string_buffer(16)
    fault = cuda.cuDeviceGetUuid(of_gpu, device) or cuda.cuDeviceGetUuid_v2(own, device)
    if fault:
        raise OSError(f"the CUDA driver gives no UUID of GPU {device} (error {fault})")
    return f"{'GPU' if own.raw == of_gpu.raw else 'MIG'}-{uuid.UUID(bytes=own.raw)}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}\n" for name in visible_gpus())
