"""What a torch stage computes on and with, fixed so that a run gives the same bytes again."""

import logging
import os
from dataclasses import dataclass

import torch

from model.encoder.compilation import has_compiler
from model.encoder.precision import Precision, fast_precision, has_bf16_instructions
from tasks.contract.stage import StageError
from tasks.machine.heap import keep_one_heap
from tasks.params.load import Compute

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """What the values of section compute come to on this machine."""

    device: torch.device
    precision: Precision
    compile_blocks: bool = False


def use_compute(compute: Compute, gpus: int = 1) -> Machine:
    """Set threads and deterministic kernels for this process; return what to work on and with.

    Args:
        compute: The section of params.yaml.
        gpus: How many the stage works on; they are its own until it ends, and are waited for.

    Raises:
        StageError: `cuda` is asked for and there is none, or there are fewer GPUs than `gpus`.
    """
    torch.set_num_threads(compute.threads)
    # cuBLAS reads it when it starts; without it deterministic mode refuses every matrix product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # no kernel in use reads memory it has not written; filling it was a tenth of a training step
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  # a property made at run time
    held = [] if compute.device == "cpu" or torch.version.cuda is None else _hold_gpus(gpus)
    available = torch.cuda.is_available()
    if compute.device == "cuda" and not available:
        raise StageError(
            "compute.device is cuda, but torch sees no CUDA device: "
            "install a CUDA build of torch and its driver, or set compute.device to cpu or auto"
        )
    use_cuda = available and compute.device != "cpu"
    if use_cuda:
        _check_gpus(held)
    else:
        keep_one_heap()
    device = torch.device("cuda" if use_cuda else "cpu")
    return Machine(device, _precision(compute, device), _compiles(compute, device))


def _hold_gpus(number: int) -> list[str]:
    """Take GPUs before anything starts CUDA, `torch.cuda.is_available` included."""
    from tasks.machine.gpus.hold import hold_gpus  # of no use to a torch without CUDA

    return hold_gpus(number)


def _check_gpus(held: list[str]) -> None:
    """See that CUDA computes on the GPUs that are held, and on no others."""
    if not held:
        logger.warning("torch sees a GPU that the CUDA driver does not list: no lock is held on it")
        return
    torch.cuda.init()  # until then the number is not that of the driver
    if torch.cuda.device_count() != len(held):
        raise StageError(
            f"{len(held)} GPUs are held for this stage, but something that it imports started CUDA "
            f"before and sees {torch.cuda.device_count()}: set CUDA_VISIBLE_DEVICES to as many as "
            "it needs, or PYTORCH_NVML_BASED_CUDA_CHECK to 1"
        )


def _compiles(compute: Compute, device: torch.device) -> bool:
    if compute.compile_blocks and device.type == "cpu" and not has_compiler():
        logger.warning(
            "compute.compile_blocks is true, but there is no g++ (nor what CXX names) or no "
            "Python.h: blocks run as they are, slower. Install g++ and the headers of Python, or "
            "set compute.compile_blocks to false"
        )
        return False
    return compute.compile_blocks


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
