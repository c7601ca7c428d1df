"""Texts end to end in one row: the padded forward pass is the reference, values and gradients."""

import pytest
import torch
from transformers import (
    AutoModel,
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from model import packing
from model.backbone import set_attention
from model.encoder import Encoder, TokenizedText, collate
from model.packing import PACKED, can_pack, pack
from model.pooling.build import LatentSize, PoolingSettings

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
}
CONFIGS = {
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "qwen2": Qwen2Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "deepseek_v3": DeepseekV3Config(**(SIZES | MLA | {"num_key_value_heads": 4})),
}
LENGTHS = [1, 40, 9, 9, 39, 2, 30, 17, 40, 9]
LATENT = LatentSize(num_latents=8, num_heads=2, head_dim=8, expansion=2)


@pytest.fixture(autouse=True)
def many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts this few would all fall into one group."""
    monkeypatch.setattr(packing, "WORTHWHILE_TOKENS", 8)


def encoder_of(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, attention: str, kind: str = "mean"
) -> Encoder:
    torch.manual_seed(0)
    decoder = AutoModel.from_config(config)
    set_attention(decoder, attention)
    settings = PoolingSettings(kind=kind, pool_prompt=False, latent=LATENT)
    return Encoder(decoder, tokenizer, settings, max_length_tokens=64)


def texts() -> list[TokenizedText]:
    generator = torch.Generator().manual_seed(1)
    return [
        TokenizedText(torch.randint(3, 400, (length,), generator=generator).tolist(), 2)
        for length in LENGTHS
    ]


def padded_and_packed(encoder: Encoder) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Vectors and all gradients of a scalar of them, by the two ways."""
    results = []
    for is_packed in (False, True):
        if is_packed:
            assert encoder.is_packed
            vectors = encoder.embed(texts())
        else:
            batch = collate(texts(), pad_id=0, pool_prompt=False, device="cpu")
            vectors = encoder(*batch)
        encoder.zero_grad()
        (vectors @ vectors.T).pow(3).sum().backward()
        gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        results.append([vectors.detach(), *gradients])
    return results[0], results[1]


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_and_gradients_equal_those_of_the_padded_pass(
    name: str, attention: str, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    padded, packed = padded_and_packed(encoder_of(CONFIGS[name], pico_tokenizer, attention))
    assert len(padded) == len(packed)
    for expected, got in zip(padded, packed, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "weighted_mean", "last", "latent"])
def test_every_pooling_sees_the_same_tokens(
    kind: str, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = encoder_of(CONFIGS["qwen3"], pico_tokenizer, "bidirectional", kind)
    padded, packed = padded_and_packed(encoder)
    torch.testing.assert_close(packed[0], padded[0], atol=2e-6, rtol=1e-5)


def test_groups_hold_every_token_once_and_little_padding() -> None:
    packed = pack(texts(), pool_prompt=True, device="cpu")
    total = sum(LENGTHS)
    assert packed.input_ids_1T.shape == (1, total)
    assert len(packed.place_T.unique()) == total
    assert len(packed.groups) > 2
    assert sum(group.rows for group in packed.groups) == len(LENGTHS)
    assert sum(group.rows * group.width for group in packed.groups) < 1.25 * total
    assert sum(int(group.pool_mask_GL.sum()) for group in packed.groups) == total


def test_padding_and_its_inverse_bring_every_row_back() -> None:
    packed = pack(texts(), pool_prompt=True, device="cpu")
    rows_TD = torch.randn(sum(LENGTHS), 3)
    assert torch.equal(packed.unpad(packed.pad(rows_TD)), rows_TD)


def test_rows_that_leave_the_padding_carry_exact_gradients() -> None:
    packed = pack(texts(), pool_prompt=True, device="cpu")
    rows_TD = torch.randn(sum(LENGTHS), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda rows: packed.unpad([block.sin() for block in packed.pad(rows)]), (rows_TD,)
    )


def test_states_of_each_text_come_in_the_order_given(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = encoder_of(CONFIGS["qwen3"], pico_tokenizer, "bidirectional").eval()
    together = encoder.token_states(texts())
    for text, states_TD in zip(texts(), together, strict=True):
        torch.testing.assert_close(states_TD, encoder.token_states([text])[0])
        assert states_TD.shape == (len(text.ids), 32)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES, sliding_window=16),
        Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16),
        MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4),
    ],
    ids=["sliding window", "alternating windows", "no attention"],
)
def test_a_decoder_that_cannot_be_packed_is_padded(
    config: PreTrainedConfig, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = encoder_of(config, pico_tokenizer, "causal")
    assert not can_pack(encoder.backbone)
    assert not encoder.is_packed
    assert encoder.embed(texts()).shape == (len(LENGTHS), 32)


def test_the_saved_folder_does_not_name_the_kernel(pico_encoder: Encoder, tmp_path) -> None:
    assert pico_encoder.is_packed
    pico_encoder.save(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text("utf-8")
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
