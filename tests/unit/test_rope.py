"""Scaled rotary positions against transformers' own functions, in memory and from the folder."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    GPT2Config,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.backbone.decoder import prove_attention
from model.backbone.rope import RopeKind, require_length, scale_rope
from model.encoder.encoder import Encoder, TokenizedText
from model.encoder.packing import PACKED
from tests.unit.tiny_decoders import NAMES, SIZES, tiny_config, tiny_encoder

KINDS: list[RopeKind] = ["linear", "ntk", "yarn"]
TRAINED = 32


def decoder_of(name: str) -> PreTrainedModel:
    config = tiny_config(name)
    config.max_position_embeddings = TRAINED
    torch.manual_seed(0)
    return AutoModel.from_config(config)


def full_attention(decoder: PreTrainedModel, what: str) -> torch.Tensor:
    """Of the layers that are scaled: Gemma 3 has positions of two kinds."""
    rope = decoder.rotary_emb
    prefix = "full_attention_" if hasattr(rope, f"full_attention_{what}") else ""
    return getattr(rope, f"{prefix}{what}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_frequencies_are_those_of_transformers(name: str, kind: RopeKind) -> None:
    decoder = decoder_of(name)
    reference = copy.deepcopy(decoder.config)
    scale_rope(decoder, kind, 4.0)
    values = reference.rope_parameters.get("full_attention", reference.rope_parameters)
    layer_type = "full_attention" if name == "gemma3" else None
    if not hasattr(reference, "head_dim") or reference.head_dim is None:
        reference.head_dim = reference.hidden_size // reference.num_attention_heads
    if kind == "ntk":  # at this length the dynamic type raises its base as far
        values |= {"rope_type": "dynamic", "factor": 1.0}
        expected = ROPE_INIT_FUNCTIONS["dynamic"](reference, None, 4 * TRAINED, layer_type)
    else:
        values |= {
            "rope_type": kind,
            "factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        }
        expected = ROPE_INIT_FUNCTIONS[kind](reference, None, None, layer_type)
    torch.testing.assert_close(full_attention(decoder, "inv_freq"), expected[0])
    assert full_attention(decoder, "attention_scaling") == pytest.approx(expected[1])
    assert decoder.config.max_position_embeddings == 4 * TRAINED


def test_the_windowed_layers_of_gemma_keep_their_positions() -> None:
    decoder, scaled = decoder_of("gemma3"), decoder_of("gemma3")
    scale_rope(scaled, "linear", 4.0)
    torch.testing.assert_close(
        scaled.rotary_emb.sliding_attention_inv_freq, decoder.rotary_emb.sliding_attention_inv_freq
    )
    assert scaled.config.rope_parameters["sliding_attention"]["rope_type"] == "default"


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_of_one_changes_nothing(kind: RopeKind) -> None:
    decoder, scaled = decoder_of("qwen3"), decoder_of("qwen3")
    scale_rope(scaled, kind, 1.0)
    assert scaled.config.to_dict() == decoder.config.to_dict()
    assert torch.equal(scaled.rotary_emb.inv_freq, decoder.rotary_emb.inv_freq)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_the_folder_keeps_the_positions(
    name: str, kind: RopeKind, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = tiny_config(name)
    config.max_position_embeddings = TRAINED
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    text = "Чай пьют с мёдом, вареньем и сушками. " * 5
    plain = encoder.encode([text, "Да."], batch_tokens=200)
    scale_rope(encoder.backbone, kind, 4.0)
    encoder.save(tmp_path)
    ours = encoder.encode([text, "Да."], batch_tokens=200)
    assert np.abs(ours - plain).max() > 1e-4
    loaded = Encoder.load(tmp_path).encode([text, "Да."], batch_tokens=200)
    np.testing.assert_array_equal(loaded, ours)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs.max_seq_length == 64 > TRAINED, "the premise: texts outgrow the trained length"
    np.testing.assert_allclose(theirs.encode([text, "Да."]), ours, atol=1e-5)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["max_position_embeddings"] == 4 * TRAINED


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_keeps_its_vector_beside_and_after_a_longer_one(
    kind: RopeKind, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The dynamic type of transformers fails this."""
    config = tiny_config("qwen3")
    config.max_position_embeddings = TRAINED
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    scale_rope(encoder.backbone, kind, 4.0)
    short, long = TokenizedText(list(range(3, 20)), 0), TokenizedText(list(range(3, 103)), 0)
    with torch.inference_mode():
        alone, beside = encoder.embed([short])[0], encoder.embed([short, long])[0]
        after = encoder.embed([short])[0]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(after, alone)


def test_positions_that_are_scaled_already_are_refused() -> None:
    decoder = decoder_of("llama")
    scale_rope(decoder, "linear", 2.0)
    with pytest.raises(ValueError, match=r"scaled already \(linear\)"):
        scale_rope(decoder, "yarn", 2.0)


def test_a_decoder_without_rotary_positions_is_refused() -> None:
    decoder = AutoModel.from_config(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, eos_token_id=1, bos_token_id=1)
    )
    with pytest.raises(ValueError, match="GPT2Model has no rotary positions"):
        scale_rope(decoder, "linear", 2.0)


def test_a_length_beyond_the_positions_is_refused() -> None:
    decoder = decoder_of("llama")
    require_length(decoder.config, TRAINED)
    with pytest.raises(ValueError, match=r"48 exceeds the 32 positions.*at least 1\.5"):
        require_length(decoder.config, 48)
    scale_rope(decoder, "yarn", 1.5)
    require_length(decoder.config, 48)


def phi3(max_length_tokens: int, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Other frequencies for every text of a batch as soon as one is longer than 32 tokens."""
    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    config = Phi3Config(
        **sizes,
        vocab_size=400,
        pad_token_id=0,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32,
        },
    )
    encoder = tiny_encoder(config, tokenizer, "bidirectional")
    encoder.max_length_tokens = max_length_tokens
    return encoder


def test_positions_that_depend_on_the_longest_text_of_a_batch_are_refused(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = phi3(64, pico_tokenizer)
    message = r"phi3 with eager sees padding.*set backbone\.max_length_tokens to at most 32"
    with pytest.raises(ValueError, match=message):
        prove_attention(encoder, "bidirectional", ["eager", "sdpa"])


def test_below_that_length_they_are_not(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    assert prove_attention(phi3(32, pico_tokenizer), "bidirectional", ["eager", "sdpa", PACKED])
