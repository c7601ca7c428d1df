"""A source is believed for what it says it is, never because it loads."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
    T5Config,
)

import model.backbone.source
from model.backbone.source import load_decoder
from model.encoder.attention import set_attention
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from tests.unit.test_trainer import SETTINGS, run, source_of
from tests.unit.tiny_decoders import tiny_config, tiny_encoder

Weights = dict[str, Tensor]


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_decoder(str(folder), revision=None, attn_implementation="sdpa")


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
        def load(source, *, revision=None, **kwargs):
            if source != str(causal_folder):  # one loader asks another
                asked.append((source, revision))
            return real(str(causal_folder), **kwargs)

        return load

    monkeypatch.setattr(model.backbone.source, "find_adapter_config_file", lambda *_, **__: None)
    for loader in (AutoConfig, AutoModel, AutoTokenizer):
        monkeypatch.setattr(loader, "from_pretrained", record(loader.from_pretrained))
    load_decoder("Qwen/Qwen3-0.6B", revision="abc123", attn_implementation="sdpa")
    load_decoder("Qwen/Qwen3-0.6B", revision=None, attn_implementation="sdpa")
    assert asked == [("Qwen/Qwen3-0.6B", "abc123")] * 3 + [("Qwen/Qwen3-0.6B", "main")] * 3


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


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize("prefix", ["_orig_mod.", "base_model.model."])
def test_weights_under_foreign_names_are_not_replaced_by_random_ones(
    causal_folder: Path, prefix: str
) -> None:
    edit_weights(causal_folder, lambda weights: {prefix + k: v for k, v in weights.items()})
    refused(causal_folder, rf"are missing \(embed_tokens.*no place in it \({prefix}model.embed_tok")


def test_a_missing_layer_is_named(causal_folder: Path) -> None:
    edit_weights(
        causal_folder,
        lambda weights: {k: v for k, v in weights.items() if ".layers.1." not in k},
    )
    refused(causal_folder, r"11 are missing \(layers\.1\.input_layernorm.*\): save it from")


@pytest.mark.parametrize(
    ("layers", "message"),
    [(3, r"missing \(layers\.2"), (1, r"no place in it \(model\.layers\.1")],
)
def test_a_config_of_other_depth_than_the_weights_is_refused(
    causal_folder: Path, layers: int, message: str
) -> None:
    edit_json(
        causal_folder / "config.json",
        num_hidden_layers=layers,
        layer_types=["full_attention"] * layers,
    )
    refused(causal_folder, message)


def test_weights_of_another_shape_are_named(causal_folder: Path) -> None:
    edit_json(causal_folder / "config.json", intermediate_size=48)
    refused(causal_folder, r"down_proj.weight \[32, 64\], expected \[32, 48\]")


def test_a_tokenizer_without_its_files_is_refused(causal_folder: Path) -> None:
    (causal_folder / "tokenizer.json").unlink()
    edit_json(causal_folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    refused(causal_folder, "knows [0-9] tokens where the embedding matrix has 400 rows")


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_is_refused_with_its_base(causal_folder: Path, has_config: bool) -> None:
    edit_json(causal_folder / "adapter_config.json", base_model_name_or_path="../base")
    if not has_config:
        (causal_folder / "config.json").unlink()
    refused(causal_folder, r"an adapter .* of '../base': merge it into its base")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_a_quantised_folder_is_called_so(causal_folder: Path, method: str) -> None:
    edit_json(causal_folder / "config.json", quantization_config={"quant_method": method})
    refused(causal_folder, rf"quantised \({method}\).*give the full weights")


def test_a_token_beyond_the_matrix_is_named(
    causal_folder: Path, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(causal_folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(causal_folder)
    refused(causal_folder, r"1 tokens .* \(\[PAD\]\) lie beyond the 400 rows")


def test_weights_that_are_no_numbers_are_refused(causal_folder: Path) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
        return weights

    edit_weights(causal_folder, spoil)
    refused(causal_folder, r"1 tensors .*layers\.1\.mlp\.down_proj\.weight the first")


def test_a_sentencepiece_tokenizer_alone_says_which_packages_read_it(causal_folder: Path) -> None:
    """transformers asks for tiktoken, which would not read it either."""
    (causal_folder / "tokenizer.json").unlink()
    edit_json(causal_folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    (causal_folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    refused(
        causal_folder, r"sentencepiece file \(tokenizer\.model\) alone.*and protobuf are install"
    )


def test_an_encoder_with_a_decoder_is_refused(causal_folder: Path) -> None:
    T5Config().save_pretrained(causal_folder)
    refused(causal_folder, r"\(t5\) is an encoder with a decoder")


def test_a_missing_package_is_named_and_not_the_kernel(
    causal_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("this model needs causal_conv1d")

    monkeypatch.setattr(AutoModel, "from_pretrained", fail)
    refused(causal_folder, "needs a package that is not installed here: .* needs causal_conv1d")


def test_of_a_model_that_reads_images_the_text_part_is_taken(
    pico_tokenizer: PreTrainedTokenizerFast, pico_texts: list[str], tmp_path: Path
) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = tiny_config("gemma3").to_dict()
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "hub")
    pico_tokenizer.save_pretrained(tmp_path / "hub")
    decoder, tokenizer = load_decoder(
        str(tmp_path / "hub"), revision=None, attn_implementation="sdpa"
    )
    assert type(decoder).__name__ == "Gemma3TextModel"
    ids = torch.tensor([tokenizer.encode(pico_texts[0])])
    with torch.inference_mode():
        expected = whole.model(input_ids=ids).last_hidden_state
        assert torch.equal(decoder(input_ids=ids).last_hidden_state, expected)
    set_attention(decoder, "bidirectional")
    encoder = Encoder(decoder, tokenizer, PoolingSettings(kind="mean"), max_length_tokens=64)
    encoder.save(tmp_path / "model")
    vectors = encoder.encode(pico_texts, batch_tokens=500)
    loaded = Encoder.load(tmp_path / "model")
    assert (loaded.encode(pico_texts, batch_tokens=500) == vectors).all()


def test_a_model_folder_without_a_layer_is_refused_by_every_stage(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    pico_encoder.save(tmp_path)
    edit_weights(
        tmp_path, lambda weights: {k: v for k, v in weights.items() if "layers.1." not in k}
    )
    with pytest.raises(ValueError, match=r"missing \(layers\.1.*run the stage that wrote it"):
        Encoder.load(tmp_path)


def test_a_decoder_whose_blocks_have_another_name_is_trained(
    pico_tokenizer: PreTrainedTokenizerFast, pico_texts: list[str], tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4)
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    before = encoder.backbone.h[1].mlp.c_fc.weight.clone()
    settings = dataclasses.replace(SETTINGS, max_steps=2)
    run(encoder, [source_of(pico_texts, [0, 1, 2, 3] * 5)], tmp_path, settings)
    assert not torch.equal(encoder.backbone.h[1].mlp.c_fc.weight, before)


def test_a_decoder_without_a_list_of_blocks_is_refused_by_name(
    causal_folder: Path,
) -> None:
    config = OPTConfig(
        vocab_size=400,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    AutoModel.from_config(config).save_pretrained(causal_folder)
    refused(causal_folder, r"OPTModel \(opt\) has no list of 2 blocks.*take another decoder")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", 3, "sub/a"])
def test_an_index_that_names_files_elsewhere_is_refused(
    causal_folder: Path, name: object, tmp_path: Path
) -> None:
    """transformers would read them: nothing outside of a folder is part of what it holds."""
    weights = causal_folder / "model.safetensors"
    keys = load_file(weights)
    weights.rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    (causal_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(causal_folder, "names files outside of its folder")


def test_an_index_of_files_beside_it_is_read(causal_folder: Path) -> None:
    weights = causal_folder / "model.safetensors"
    keys = load_file(weights)
    weights.rename(causal_folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "part.safetensors")}
    path = causal_folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    load_decoder(str(causal_folder), revision=None, attn_implementation="eager")
    path.write_text("[]")
    refused(causal_folder, "has no weight_map")


def test_a_config_with_a_value_of_another_type_is_refused(causal_folder: Path) -> None:
    path = causal_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": "two"}))
    refused(causal_folder, r"holds no decoder .*to load: .*num_hidden_layers")
