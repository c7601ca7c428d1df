"""Blocks of a decoder compiled: fewer kernels, and fewer activations kept for the backward pass.

Norms, rotary positions, gates and residual sums of a block each read and write all its states; as
one kernel they do so once. All blocks share what was compiled for the first, for any number of
tokens. Attention in groups of texts stays as it is (model/encoder/packing.py).
"""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from model.encoder.blocks import named_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def has_compiler() -> bool:
    """Whether torch.compile finds what it builds kernels of a processor with: g++ and Python.h."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.exists()


def compile_blocks(decoder: "PreTrainedModel") -> bool:
    """Have torch.compile replace every block when it is first run, in place.

    Names of weights stay as they are.

    Args:
        decoder: With a list of blocks, as the backbone of an encoder has.

    Returns:
        Whether there were blocks that had not been compiled.
    """
    plain = [block for block in named_blocks(decoder)[1] if block._compiled_call_impl is None]
    for block in plain:
        block.compile(dynamic=True)
    return bool(plain)
