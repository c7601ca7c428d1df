"""The proof of the attention of a decoder.

Bidirectional attention is a setting of the stock transformers classes. A class that ignores it
gives no error, so nothing is believed unmeasured.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from model.backbone.rope import steady_length
from model.encoder.attention import Direction, window_of
from model.encoder.encoder import Encoder, TokenizedText
from model.encoder.packing import PACKED, has_kernel
from model.encoder.precision import Precision, decoder_autocast

PROBE_TOKENS = 12
PROBE_PADDING = 5
MIN_CHANGE = 1e-4
"""Least change of the first state, over the largest state, that shows it sees the last token."""
MAX_NOISE = 1e-5
"""Largest change that still counts as none."""
MAX_PADDING_CHANGE = 1e-4
"""Largest change of any number of a unit-norm vector by padding, in float32."""
MAX_PADDING_CHANGE_BF16 = 3e-2
"""The same with kernels that work in bfloat16."""

logger = logging.getLogger(__name__)


@contextmanager
def named_as_unfit(decoder: PreTrainedModel) -> Iterator[None]:
    """Let what the code of a type of decoder raises name the type; its trace is logged.

    transformers holds some two hundred types, each with code of its own.

    Raises:
        ValueError: Something else than memory, the disk or a refusal in words ended the block.
    """
    try:
        yield
    except (torch.OutOfMemoryError, OSError, ValueError):
        raise
    except Exception as error:
        logger.exception("in the code of %s", type(decoder).__name__)
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{type(decoder).__name__} ({decoder.config.model_type}) fails as an encoder, in code "
            f"that is quoted above ({type(error).__name__}: {first_line}): take another decoder, "
            "backbone.attn_implementation or attention; where pruning fails, prune.fraction 0"
        ) from error


def implementations_of(decoder: PreTrainedModel, configured: str) -> list[str]:
    """Attention implementations to prove: the configured one and what others may load it with."""
    names = {"eager", configured}
    if decoder._supports_sdpa:
        names.add("sdpa")
    if decoder.config._attn_implementation == PACKED:
        names.add(PACKED)
    return sorted(names)


def save_and_prove(
    encoder: Encoder,
    folder: Path,
    attention: Direction,
    *,
    device: torch.device,
    attn_implementation: str,
    precision: Precision,
) -> dict[str, Any]:
    """Save an encoder; proof of the attention of what was saved, with every kernel it may run with.

    Args:
        encoder: Must give the same vectors once it is read back.
        folder: Where it is written.
        attention: What it claims.
        device: Where the proof is made.
        attn_implementation: The configured kernel; eager and sdpa are measured as well.
        precision: The type that trainings run in; float32 is measured as well.

    Raises:
        ValueError: A measurement contradicts the claim, or the folder holds another encoder.
    """
    loaded = encoder.save_proven(folder, attn_implementation=attn_implementation).to(device)
    implementations = implementations_of(loaded.backbone, attn_implementation)
    return prove_attention(loaded, attention, implementations, precision)


def prove_attention(
    encoder: Encoder,
    attention: Direction,
    implementations: Sequence[str],
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """Measure what the first token sees and what padding changes, for each attention kernel.

    The last token of a text is exchanged: the state of the first token must change when attention
    is bidirectional and must not when it is causal, with and without padding, since transformers
    takes another path for each. Where a sliding window is shorter than the text, the last token
    that the first one sees is exchanged instead. A text must keep its vector when others of its
    batch are longer or shorter, also beyond the window and beyond the length from which positions
    depend on the batch, as far as texts may be that long.

    Args:
        encoder: Left with the attention implementation it came with.
        attention: What the encoder claims.
        implementations: Attention implementations to measure.
        precision: Measured beside float32.

    Returns:
        JSON: the claim, the bounds, and per implementation (and type, where it is not float32)
        `first_state_change` and `first_state_change_padded` (largest change over largest state)
        and `vector_change_by_padding` (largest change of one number).

    Raises:
        ValueError: A measurement contradicts the claim.
    """
    original = encoder.backbone.config._attn_implementation or "eager"
    measured: dict[str, dict[str, float]] = {}
    try:
        for name, dtype in _kernels(implementations, encoder.device, precision):
            encoder.backbone.set_attn_implementation(name)
            kernel = name if dtype == "fp32" else f"{name} in {dtype}"
            with decoder_autocast(encoder.device, dtype):
                measured[kernel] = _measure(encoder)
            logger.info("%s attention with %s: %s", attention, kernel, measured[kernel])
            _check(measured[kernel], attention, encoder.backbone.config, kernel)
    finally:
        encoder.backbone.set_attn_implementation(original)
    bounds = {
        "min_change": MIN_CHANGE,
        "max_noise": MAX_NOISE,
        "max_padding_change": MAX_PADDING_CHANGE,
    }
    return {"attention": attention, "bounds": bounds, "implementations": measured}


def _kernels(
    implementations: Sequence[str], device: torch.device, precision: Precision
) -> Iterator[tuple[str, Precision]]:
    """Each implementation in float32, the type in use, and that of a kernel of its own."""
    for name in implementations:
        if "flash" in name:  # half precision alone
            yield name, "bf16"
            continue
        yield name, "fp32"
        if precision == "bf16" or (name == PACKED and has_kernel(device)):
            yield name, "bf16"


@torch.inference_mode()
def _measure(encoder: Encoder) -> dict[str, float]:
    vocabulary = encoder.backbone.config.vocab_size
    ids = [(7 * token + 3) % vocabulary for token in range(_long_tokens(encoder))]
    long = TokenizedText(ids, prompt_tokens=0)
    probe = TokenizedText(ids[:PROBE_TOKENS], prompt_tokens=0)
    window = window_of(encoder.backbone.config) or PROBE_TOKENS
    place = min(PROBE_TOKENS, max(2, window)) - 1
    other = TokenizedText(list(probe.ids), prompt_tokens=0)
    other.ids[place] = (other.ids[place] + 1) % vocabulary
    alone_BD = torch.cat([encoder.embed([probe]), encoder.embed([long])])
    together_BD = encoder.embed([probe, long])
    return {
        "first_state_change": _change(encoder, [probe], [other]),
        "first_state_change_padded": _change(encoder, [probe, long], [other, long]),
        "vector_change_by_padding": _rounded((alone_BD - together_BD).abs().max()),
    }


def _long_tokens(encoder: Encoder) -> int:
    """Tokens of the longer text: beyond all that changes with length, if texts may be so long."""
    config = encoder.backbone.config
    beyond = max(PROBE_TOKENS, window_of(config) or 0, steady_length(config) or 0)
    shortest = PROBE_TOKENS + PROBE_PADDING
    return max(shortest, min(beyond + PROBE_PADDING, encoder.max_length_tokens))


def _change(
    encoder: Encoder, texts: Sequence[TokenizedText], others: Sequence[TokenizedText]
) -> float:
    """Largest change of the first token's state in the first text, over its largest number."""
    before_D, after_D = (encoder.token_states(items)[0][0] for items in (texts, others))
    return _rounded((before_D - after_D).abs().max() / before_D.abs().max())


def _rounded(value: Tensor) -> float:
    return float(f"{value.item():.3g}")


def _check(
    measured: dict[str, float], attention: str, config: PreTrainedConfig, kernel: str
) -> None:
    """Every comparison is written so that a number that is none fails it."""
    name = f"{config.model_type} with {kernel}"
    changes = [measured["first_state_change"], measured["first_state_change_padded"]]
    if not all(math.isfinite(value) for value in measured.values()):
        raise ValueError(
            f"{name} gives numbers that are not finite ({measured}): its weights are damaged, or "
            "this kernel fails on them"
        )
    if attention == "bidirectional" and not min(changes) >= MIN_CHANGE:
        raise ValueError(
            f"{name} stays causal: exchanging a late token changes the first state by "
            f"{min(changes):.3g}, expected at least {MIN_CHANGE:g}. This class of transformers "
            "ignores config.is_causal = False: set backbone.attention to causal or take another "
            "decoder"
        )
    if attention == "causal" and not max(changes) <= MAX_NOISE:
        raise ValueError(
            f"{name} is not causal: exchanging a late token changes the first state by "
            f"{max(changes):.3g}, expected at most {MAX_NOISE:g}"
        )
    limit = MAX_PADDING_CHANGE_BF16 if kernel.endswith("bf16") else MAX_PADDING_CHANGE
    if not measured["vector_change_by_padding"] <= limit:
        steady = steady_length(config)
        advice = (
            "take another decoder"
            if steady is None
            else f"its positions are others where a text of the batch has more than {steady} "
            f"tokens, set backbone.max_length_tokens to at most {steady}"
        )
        raise ValueError(
            f"{name} sees padding: it changes a vector by "
            f"{measured['vector_change_by_padding']:.3g}, expected at most {limit:g}: {advice}"
        )
