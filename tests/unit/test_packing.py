"""Texts end to end in one row: the padded forward pass is the reference, values and gradients."""

import pytest
import torch
from transformers import AutoModel, MambaConfig, PreTrainedTokenizerFast

from model.encoder import packing
from model.encoder.attention import Direction
from model.encoder.encoder import Encoder, TokenizedText, collate
from model.encoder.packing import PACKED, can_pack, pack
from model.encoder.pooling.build import KINDS, LatentSize, PoolingSettings
from tests.unit.tiny_decoders import NAMES, tiny_config, tiny_encoder

LENGTHS = [1, 40, 9, 9, 39, 2, 30, 17, 40, 9]
LATENT = LatentSize(num_latents=8, num_heads=2, head_dim=8, expansion=2)


@pytest.fixture(autouse=True)
def many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts this few would all fall into one group."""
    monkeypatch.setattr(packing, "WORTHWHILE_TOKENS", 8)


def encoder_of(
    name: str, tokenizer: PreTrainedTokenizerFast, attention: Direction, kind: str = "mean"
) -> Encoder:
    settings = PoolingSettings(kind=kind, pool_prompt=False, latent=LATENT, layer_tokens="mean")
    return tiny_encoder(tiny_config(name), tokenizer, attention, settings).train()


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
@pytest.mark.parametrize("name", NAMES)
def test_vectors_and_gradients_equal_those_of_the_padded_pass(
    name: str, attention: Direction, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    padded, packed = padded_and_packed(encoder_of(name, pico_tokenizer, attention))
    assert len(padded) == len(packed)
    for expected, got in zip(padded, packed, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_gemma_made_bidirectional_the_common_way_sees_one_token_more(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """With `is_causal` in place of its own setting transformers draws the window another way."""
    config = tiny_config("gemma3")
    config.is_causal = False
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    with torch.no_grad():
        batch = collate(texts(), pad_id=0, pool_prompt=True, device="cpu")
        torch.testing.assert_close(encoder.embed(texts()), encoder(*batch), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pooling_sees_the_same_tokens(
    kind: str, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = encoder_of("qwen3", pico_tokenizer, "bidirectional", kind)
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
    encoder = encoder_of("qwen3", pico_tokenizer, "bidirectional").eval()
    together = encoder.token_states(texts())
    for text, states_TD in zip(texts(), together, strict=True):
        torch.testing.assert_close(states_TD, encoder.token_states([text])[0])
        assert states_TD.shape == (len(text.ids), 32)


def test_a_decoder_that_cannot_be_packed_is_padded(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    mamba = MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)
    encoder = tiny_encoder(mamba, pico_tokenizer, "causal")
    assert not can_pack(encoder.backbone)
    assert not encoder.is_packed
    assert encoder.embed(texts()).shape == (len(LENGTHS), 32)


def test_the_saved_folder_does_not_name_the_kernel(pico_encoder: Encoder, tmp_path) -> None:
    assert pico_encoder.is_packed
    pico_encoder.save(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text("utf-8")
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
