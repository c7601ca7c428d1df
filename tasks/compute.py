"""The device and the threads of a torch stage, fixed so that a run gives the same bytes again."""

import os

import torch

from tasks.params import Compute
from tasks.stage import StageError


def use_compute(compute: Compute) -> torch.device:
    """Set threads and deterministic kernels for this process; return the device to work on.

    Raises:
        StageError: `cuda` is asked for and there is none.
    """
    torch.set_num_threads(compute.threads)
    # cuBLAS reads it when it starts; without it deterministic mode refuses every matrix product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # no kernel in use reads memory it has not written; filling it was a tenth of a training step
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  # a property made at run time
    available = torch.cuda.is_available()
    if compute.device == "cuda" and not available:
        raise StageError(
            "compute.device is cuda, but torch sees no CUDA device: "
            "install a CUDA build of torch and its driver, or set compute.device to cpu or auto"
        )
    use_cuda = available and compute.device != "cpu"
    return torch.device("cuda" if use_cuda else "cpu")
