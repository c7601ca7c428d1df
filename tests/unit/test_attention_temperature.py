"""A temperature baked into the queries is the temperature of the softmax, for every kernel."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, Gemma2Config, GPT2Config, PreTrainedTokenizerFast

from model.backbone.attention_temperature import temper_attention
from model.encoder.encoder import Encoder, TokenizedText
from model.encoder.packing import PACKED
from tests.unit.tiny_decoders import NAMES, SIZES, tiny_config, tiny_encoder


@pytest.mark.parametrize("kernel", ["eager", "sdpa", PACKED])
@pytest.mark.parametrize("temperature", [0.5, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_temperature_of_the_softmax(
    name: str, temperature: float, kernel: str, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    baked = tiny_encoder(tiny_config(name), pico_tokenizer, "bidirectional")
    with torch.no_grad():  # norms and biases away from their neutral start
        for weight in baked.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator()))
    scaled = copy.deepcopy(baked)
    for layer in scaled.backbone.layers:
        layer.self_attn.scaling /= temperature
    temper_attention(baked.backbone, temperature)
    texts = [TokenizedText(list(range(3, 3 + length)), 0) for length in (30, 7)]
    found = []
    for encoder in (scaled, baked):
        encoder.backbone.set_attn_implementation(kernel)
        with torch.inference_mode():
            found.append(torch.cat(encoder.token_states(texts)))
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=1e-4)
    temper_attention(baked.backbone, 1 / temperature)
    with torch.inference_mode():
        assert (torch.cat(baked.token_states(texts)) - found[0]).abs().max() > 1e-3


def test_one_changes_nothing(pico_encoder: Encoder) -> None:
    before = copy.deepcopy(pico_encoder.state_dict())
    temper_attention(pico_encoder.backbone, 1.0)
    for name, value in pico_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_sentence_transformers_has_it_too(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    plain = pico_encoder.encode(pico_texts, batch_tokens=100)
    temper_attention(pico_encoder.backbone, 0.5)
    ours = pico_encoder.encode(pico_texts, batch_tokens=100)
    assert np.abs(ours - plain).max() > 1e-4
    pico_encoder.save(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(pico_texts, batch_size=5)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_logits_that_are_capped_are_refused() -> None:
    decoder = AutoModel.from_config(Gemma2Config(**SIZES, head_dim=8))
    with pytest.raises(ValueError, match="Gemma2Model caps its attention logits"):
        temper_attention(decoder, 0.5)


def test_queries_by_another_name_are_refused() -> None:
    config = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=4, eos_token_id=1, bos_token_id=1
    )
    with pytest.raises(ValueError, match="no query weights by a known name"):
        temper_attention(AutoModel.from_config(config), 0.5)
