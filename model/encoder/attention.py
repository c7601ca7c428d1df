"""Which way the attention of a decoder looks: a setting of the stock transformers classes."""

from typing import Literal

from transformers import PreTrainedConfig, PreTrainedModel

Direction = Literal["bidirectional", "causal"]

GEMMA = "gemma3_text"
"""Gemma 3 has a setting of its own, `use_bidirectional_attention`, which EmbeddingGemma uses: it
halves the sliding window, so that a token sees as many tokens as before, on two sides."""


def set_attention(decoder: PreTrainedModel, attention: Direction) -> None:
    """Let every token see all tokens, or only the earlier ones; kept in config.json when saved.

    Most classes of transformers >= 5.2 follow `config.is_causal`. A class that ignores it gives no
    error: `model.backbone.decoder.prove_attention` has the last word.
    """
    if decoder.config.model_type != GEMMA:
        decoder.config.is_causal = attention == "causal"
    elif is_causal(decoder.config) != (attention == "causal"):
        _turn_gemma(decoder, attention)


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a token sees only the earlier ones, by the config."""
    if config.model_type == GEMMA and config.use_bidirectional_attention:
        return False
    return getattr(config, "is_causal", True)


def window_of(config: PreTrainedConfig) -> int | None:
    """Sliding window in tokens, of the layers that have one; None where no layer has."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if getattr(config, "use_sliding_window", True) is False or "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def reach_of(config: PreTrainedConfig, window: int | None) -> tuple[int, int]:
    """Tokens that a token sees before and after itself, -1 for all; as transformers masks them.

    Args:
        config: Says whether attention is causal.
        window: Sliding window of the layer, None where it has none. A causal token is one of those
            in its window; on two sides it is not, but for Gemma's own setting.
    """
    if is_causal(config):
        return (-1 if window is None else window - 1), 0
    if window is None:
        return -1, -1
    is_halved = config.model_type == GEMMA and config.use_bidirectional_attention
    side = window - 1 if is_halved else window
    return side, side


def _turn_gemma(decoder: PreTrainedModel, attention: Direction) -> None:
    """The arithmetic of Gemma3TextConfig, which does it only while a config is read."""
    config = decoder.config
    vars(config).pop("is_causal", None)
    config.use_bidirectional_attention = attention == "bidirectional"
    window = config.sliding_window
    config.sliding_window = window // 2 + 1 if attention == "bidirectional" else (window - 1) * 2
    for module in decoder.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = attention == "causal"  # pyright: ignore[reportArgumentType]  # a plain bool
        if getattr(module, "is_sliding", False):
            module.sliding_window = config.sliding_window
