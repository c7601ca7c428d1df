"""The number type of a forward pass: bfloat16 where the device multiplies it fast, else float32.

Weights, pooling, similarities and losses stay in float32; the type is that of the decoder's matrix
products, by autocast.
"""

import platform
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def fast_precision(device: torch.device) -> Precision:
    """The faster type on this device.

    A processor without bfloat16 instructions emulates them: measured on an AVX2 machine, a product
    takes six times as long as in float32.
    """
    return "bf16" if has_bf16_instructions(device) else "fp32"


def has_bf16_instructions(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in {"x86_64", "amd64"}:
        # oneDNN's own check is content with AVX-512, where bfloat16 is emulated
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def decoder_autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Context in which a decoder runs with this type."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
