"""How near a training comes to the arithmetic that its device can do: model FLOPs utilisation.

Counted are 6 operations per weight of the blocks and token that is no padding (forward and backward
pass; attention, embeddings and what is computed twice to save memory left out), over the rate of
one large matrix product. Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
"""

import time

import torch

from model.encoder.blocks import named_blocks
from model.encoder.encoder import Encoder
from model.encoder.precision import Precision

OPERATIONS_PER_WEIGHT = 6.0
EDGE = {"cuda": 8192, "cpu": 512}
"""Of the square matrices, by device."""
PRODUCTS = 5


def most_tokens_per_s(encoder: Encoder, precision: Precision) -> float:
    """Tokens of training steps of arithmetic alone, on one device like that of the encoder."""
    blocks = named_blocks(encoder.backbone)[1].parameters()
    weights = sum(weight.numel() for weight in blocks if weight.ndim > 1)
    return _peak_rate(encoder.device, precision) / (OPERATIONS_PER_WEIGHT * weights)


def _peak_rate(device: torch.device, precision: Precision) -> float:
    """Operations per second of the fastest of a few products; they take some milliseconds.

    On a processor that other programs use it is their share lower.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    edge = EDGE["cuda" if device.type == "cuda" else "cpu"]
    matrix = torch.ones(edge, edge, device=device, dtype=dtype)
    seconds = min(_seconds_of_product(matrix) for _ in range(PRODUCTS))
    return 2.0 * edge**3 / seconds


def _seconds_of_product(matrix: torch.Tensor) -> float:
    if matrix.device.type == "cuda":
        torch.cuda.synchronize(matrix.device)
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    if matrix.device.type == "cuda":
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - started
