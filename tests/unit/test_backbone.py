"""The decoder: loading, and a proof of its attention that can fail."""

import json
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from model.backbone import decoder as backbone
from model.backbone.decoder import implementations_of, load_decoder, prove_attention
from model.encoder.encoder import Encoder
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


@pytest.fixture
def causal_folder(pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A causal language model as others publish it: bfloat16, with its head."""
    torch.manual_seed(0)
    decoder = Qwen3ForCausalLM(tiny_config("qwen3")).to(torch.bfloat16)
    decoder.save_pretrained(tmp_path / "hub")
    pico_tokenizer.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def test_a_language_model_loads_without_its_head_in_float32(causal_folder: Path) -> None:
    decoder, tokenizer = load_decoder(
        str(causal_folder), revision=None, attn_implementation="eager"
    )
    assert type(decoder).__name__ == "Qwen3Model"
    assert decoder.dtype == torch.float32
    assert decoder.config._attn_implementation == "eager"
    assert tokenizer.decode(tokenizer.encode("Да.")) == "Да."


def test_a_hub_id_is_asked_for_with_its_revision(
    causal_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub path is the folder path of the same from_pretrained, so it is run on a folder."""
    asked: list[tuple[str, str]] = []

    def record(real):
        def load(source, *, revision, **kwargs):
            asked.append((source, revision))
            return real(str(causal_folder), **kwargs)

        return load

    for name in ("AutoModel", "AutoTokenizer"):
        loader = getattr(backbone, name)
        monkeypatch.setattr(loader, "from_pretrained", record(loader.from_pretrained))
    load_decoder("Qwen/Qwen3-0.6B", revision="abc123", attn_implementation="sdpa")
    load_decoder("Qwen/Qwen3-0.6B", revision=None, attn_implementation="sdpa")
    assert asked == [("Qwen/Qwen3-0.6B", "abc123")] * 2 + [("Qwen/Qwen3-0.6B", "main")] * 2


def test_a_hub_id_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'samovar/none' \(revision v1\).*HF_HUB_OFFLINE=1"):
        load_decoder("samovar/none", revision="v1", attn_implementation="sdpa")


def test_a_missing_folder_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        load_decoder("./missing", revision=None, attn_implementation="sdpa")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no decoder and fast tokenizer"):
        load_decoder(str(tmp_path), revision=None, attn_implementation="sdpa")


def test_weights_that_are_cut_off_are_told_from_a_wrong_folder(causal_folder: Path) -> None:
    weights = causal_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"hub' are damaged or cut off .*fetch them again"):
        load_decoder(str(causal_folder), revision=None, attn_implementation="sdpa")


def test_a_missing_attention_kernel_is_named(causal_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("flash attention may be installed here")
    with pytest.raises(ValueError, match="flash_attention_2"):
        load_decoder(str(causal_folder), revision=None, attn_implementation="flash_attention_2")
