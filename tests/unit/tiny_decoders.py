"""Configs of the decoder families, small enough for every test, and encoders made of them."""

import copy

import torch
from transformers import (
    AutoModel,
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from model.encoder.attention import Direction, set_attention
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings

WINDOW = 8
SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
MLA = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
_CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "qwen2": Qwen2Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "deepseek_v3": DeepseekV3Config(**(SIZES | MLA)),
    "mistral, window": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
NAMES = list(_CONFIGS)
WINDOWED = ["mistral, window", "gemma3"]


def tiny_config(name: str) -> PreTrainedConfig:
    """A copy: models write into their config."""
    return copy.deepcopy(_CONFIGS[name])


def tiny_encoder(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    attention: Direction,
    settings: PoolingSettings | None = None,
) -> Encoder:
    """Random weights, the same each time, in eval mode."""
    torch.manual_seed(0)
    decoder = AutoModel.from_config(config)
    set_attention(decoder, attention)
    settings = settings or PoolingSettings(kind="mean")
    return Encoder(decoder, tokenizer, settings, max_length_tokens=64).eval()
