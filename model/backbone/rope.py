"""Rotary positions beyond the length a decoder was trained for: a matter of its config alone.

All three ways are fixed when the decoder is made. The `dynamic` type of transformers is not among
them: it takes its frequencies from the longest text of a batch and of those before it, so a text
would have another vector in other company.
"""

from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedModel

RopeKind = Literal["linear", "ntk", "yarn"]

LENGTH_DEPENDENT = ("longrope", "dynamic")
"""Types of transformers whose frequencies are those of the longest text of a batch."""


def scale_rope(decoder: PreTrainedModel, kind: RopeKind, factor: float) -> None:
    """Let a decoder read texts `factor` times as long; kept in config.json when saved.

    Where layers differ, those of full attention are scaled: a window is never outgrown.

    Args:
        decoder: Changed in place, its `max_position_embeddings` included.
        kind: `linear` divides positions (position interpolation, arXiv:2306.15595); `ntk` raises
            the base so that the slowest frequency is divided (LongEmbed, arXiv:2404.12096); `yarn`
            divides the slow frequencies alone and sharpens attention (arXiv:2309.00071).
        factor: At least 1, which changes nothing.

    Raises:
        ValueError: The decoder has no rotary positions, or they are scaled already.
    """
    config = decoder.config
    if factor == 1.0:
        return
    values = getattr(config, "rope_parameters", None)
    if not values or not hasattr(decoder, "rotary_emb"):
        raise ValueError(
            f"{type(decoder).__name__} has no rotary positions: set backbone.rope_scaling to null"
        )
    values = values.get("full_attention", values)
    if values.get("rope_type", "default") != "default":
        raise ValueError(
            f"the positions of this decoder are scaled already ({values['rope_type']}): set "
            "backbone.rope_scaling to null"
        )
    if kind == "ntk":
        size = rotary_size(config)
        values["rope_theta"] *= factor ** (size / (size - 2))
    else:
        values |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        values["original_max_position_embeddings"] = config.max_position_embeddings
    config.max_position_embeddings = int(config.max_position_embeddings * factor)
    device = next(decoder.parameters()).device
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(device)  # pyright: ignore[reportCallIssue, reportArgumentType]  # a module class


def rotary_size(config: PreTrainedConfig) -> int:
    """Numbers per head that are rotated."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = config.rope_parameters
    values = values.get("full_attention", values)
    return int(head_dim * values.get("partial_rotary_factor", 1.0))


def require_length(config: PreTrainedConfig, max_length_tokens: int) -> None:
    """Make sure that the decoder has positions for texts of this length.

    Raises:
        ValueError: It has not.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and max_length_tokens > limit:
        raise ValueError(
            f"backbone.max_length_tokens {max_length_tokens} exceeds the {limit} positions of the "
            f"decoder: lower it, or set backbone.rope_scaling with a factor of at least "
            f"{max_length_tokens / limit:.3g}"
        )


def steady_length(config: PreTrainedConfig) -> int | None:
    """Longest text of a batch up to which positions are the same; None where they always are.

    `longrope` (Phi-3) and `dynamic` take their frequencies from the longest text of a batch.
    """
    values: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in values.values() if isinstance(part, dict)] or [values]
    changing = [part for part in parts if part.get("rope_type") in LENGTH_DEPENDENT]
    limits = [
        part.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for part in changing
    ]
    return min(limits, default=None)
