"""What a torch stage computes on and with, fixed so that a run gives the same bytes again."""

import logging
import os
from dataclasses import dataclass

import torch

from model.precision import Precision, fast_precision, has_bf16_instructions
from tasks.params import Compute
from tasks.stage import StageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What the values of section compute come to on this machine."""

    device: torch.device
    precision: Precision
    compile_blocks: bool = False


def use_compute(compute: Compute) -> Machine:
    """Set threads and deterministic kernels for this process; return what to work on and with.

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
    device = torch.device("cuda" if use_cuda else "cpu")
    return Machine(device, _precision(compute, device), compute.compile_blocks)


def _precision(compute: Compute, device: torch.device) -> Precision:
    if compute.precision == "auto":
        precision = fast_precision(device)
        logger.info("precision %s (compute.precision auto, %s)", precision, device.type)
        return precision
    if compute.precision == "bf16" and not has_bf16_instructions(device):
        logger.warning(
            "compute.precision is bf16, but this %s has no bfloat16 instructions and emulates "
            "them, several times slower than float32: set it to auto or fp32",
            "GPU" if device.type == "cuda" else "processor",
        )
    return compute.precision
