"""A decoder out of a GGUF file: plain tensors in bfloat16, and its tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from infra.base.errors import BaseError
from model.writing import writing

MAGIC = b"GGUF"


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a folder that `backbone.source` takes.

    Quantised blocks become numbers again; what the quantisation lost stays lost.

    Args:
        gguf: Any type of numbers and any architecture that transformers reads.
        folder: Exists; config, tokenizer and safetensors are written into it.

    Raises:
        BaseError: The file is none, is cut off, or cannot be read by this transformers.
    """
    with gguf.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BaseError(f"{gguf} is no GGUF file: it does not begin with {MAGIC.decode()}")
    transformers_logging.disable_progress_bar()
    with _explained(gguf):
        options = {"gguf_file": gguf.name, "local_files_only": True}
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  # a pair, by output_loading_info
            gguf.parent,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    absent = sorted(info["missing_keys"]) + sorted(info["mismatched_keys"])
    if absent:
        raise BaseError(f"{gguf} lacks {len(absent)} tensors of its model, {absent[0]} the first")
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _explained(gguf: Path) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BaseError(
            f"{gguf} cannot be read ({type(error).__name__}: {reason}): it is cut off, or of an "
            "architecture or a type of numbers that this transformers does not know; fetch it "
            "again, or convert it to a folder of safetensors where it was made"
        ) from error
