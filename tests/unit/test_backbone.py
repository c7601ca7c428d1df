"""A proof of the attention of a decoder that can fail."""

import json
import math

import pytest
import torch
from transformers import MambaConfig, PreTrainedTokenizerFast

from model.backbone.decoder import implementations_of, prove_attention
from model.encoder.attention import Direction
from model.encoder.encoder import Encoder, TokenizedText
from model.encoder.packing import PACKED
from tests.unit.tiny_decoders import tiny_config, tiny_encoder

KERNELS = ["eager", "sdpa", PACKED]


def test_the_proof_is_json_and_leaves_the_kernel_as_it_was(pico_encoder: Encoder) -> None:
    proof = prove_attention(pico_encoder, "bidirectional", KERNELS)
    assert json.loads(json.dumps(proof)) == proof
    assert pico_encoder.backbone.config._attn_implementation == PACKED


def test_causal_attention_does_not_pass_for_bidirectional(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = tiny_encoder(tiny_config("qwen3"), pico_tokenizer, "causal")
    with pytest.raises(ValueError, match="qwen3 with eager stays causal"):
        prove_attention(encoder, "bidirectional", KERNELS)
    assert encoder.backbone.config._attn_implementation == PACKED


def test_bidirectional_attention_does_not_pass_for_causal(pico_encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="is not causal"):
        prove_attention(pico_encoder, "causal", ["sdpa"])


def test_an_architecture_that_ignores_the_setting_is_refused(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A recurrent decoder accepts `is_causal` in its config and stays what it is."""
    config = MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    with pytest.raises(ValueError, match=r"mamba with eager stays causal.*take another decoder"):
        prove_attention(encoder, "bidirectional", ["eager"])


def test_a_kernel_that_stays_causal_is_refused(
    pico_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of past releases: the mask is dropped and the kernel falls back on is_causal."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def always_causal(module, query, key, value, attention_mask, **kwargs):
        return sdpa(module, query, key, value, None, **(kwargs | {"is_causal": True}))

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", always_causal)
    with pytest.raises(ValueError, match="qwen3 with sdpa stays causal"):
        prove_attention(pico_encoder, "bidirectional", KERNELS)


def test_a_vector_that_depends_on_padding_is_refused(
    pico_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = pico_encoder.backbone.forward
    monkeypatch.setattr(
        pico_encoder.backbone,
        "forward",
        lambda attention_mask, **kwargs: forward(
            attention_mask=torch.ones_like(attention_mask), **kwargs
        ),
    )
    with pytest.raises(ValueError, match="sees padding"):
        prove_attention(pico_encoder, "bidirectional", ["sdpa"])


def test_every_kernel_a_reader_may_choose_is_proven(pico_encoder: Encoder) -> None:
    assert implementations_of(pico_encoder.backbone, "eager") == ["eager", PACKED, "sdpa"]
    names = implementations_of(pico_encoder.backbone, "flash_attention_2")
    assert names == ["eager", "flash_attention_2", PACKED, "sdpa"]


def test_numbers_that_are_none_fail_every_comparison(pico_encoder: Encoder) -> None:
    """Every comparison with NaN is false, so a proof that looks for a fault would find none."""
    with torch.no_grad():
        pico_encoder.backbone.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    for attention in ("bidirectional", "causal"):
        with pytest.raises(ValueError, match="not finite"):
            prove_attention(pico_encoder, attention, KERNELS)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_type_in_use_is_proven_beside_float32(
    pico_tokenizer: PreTrainedTokenizerFast, attention: Direction
) -> None:
    encoder = tiny_encoder(tiny_config("qwen3"), pico_tokenizer, attention)
    proof = prove_attention(encoder, attention, KERNELS, "bf16")
    names = [*KERNELS, *(f"{kernel} in bf16" for kernel in KERNELS)]
    assert sorted(proof["implementations"]) == sorted(names)


def test_texts_beyond_the_window_are_compared(
    pico_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that goes wrong there alone: the probe itself is shorter."""
    config = tiny_config("mistral, window")
    config.sliding_window = 30
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    embed = encoder.embed

    def wrong_for_many(items: list[TokenizedText]) -> torch.Tensor:
        longest = max(len(item.ids) for item in items)
        return embed(items) + 0.1 * (len(items) > 1 and longest > 30)

    monkeypatch.setattr(encoder, "embed", wrong_for_many)
    with pytest.raises(ValueError, match="sees padding"):
        prove_attention(encoder, "bidirectional", ["sdpa"])
