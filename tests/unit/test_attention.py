"""Every family looks both ways with every kernel, in memory and from the folder, and no further."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available

from model.backbone.decoder import prove_attention
from model.encoder.attention import Direction, is_causal, set_attention, window_of
from model.encoder.encoder import Encoder, TokenizedText
from model.encoder.packing import PACKED
from tests.unit.tiny_decoders import NAMES, WINDOW, WINDOWED, tiny_config, tiny_encoder

KERNELS = ["eager", "sdpa", PACKED, "flash_attention_2"]
DIRECTIONS: list[Direction] = ["bidirectional", "causal"]


def skip_where_impossible(name: str, kernel: str) -> None:
    if kernel == "flash_attention_2" and not (
        is_flash_attn_2_available() and torch.cuda.is_available()
    ):
        pytest.skip("flash-attn or a GPU is missing: FLASH ATTENTION IS NOT PROVEN HERE")


@pytest.mark.parametrize("attention", DIRECTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_attention_is_what_it_claims_in_memory_and_from_the_folder(
    name: str,
    kernel: str,
    attention: Direction,
    pico_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    skip_where_impossible(name, kernel)
    encoder = tiny_encoder(tiny_config(name), pico_tokenizer, attention)
    if "flash" in kernel:
        encoder.cuda()
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path, device=encoder.device, attn_implementation=kernel)
    [made], [read] = (
        prove_attention(each, attention, [kernel])["implementations"].values()
        for each in (encoder, loaded)
    )
    assert made == read
    changes = [made["first_state_change"], made["first_state_change_padded"]]
    if attention == "bidirectional":
        assert min(changes) > 1e-3
    else:
        assert max(changes) == 0.0
    assert json.loads((tmp_path / "samovar.json").read_text())["attention"] == attention


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_builds_a_causal_mask_whatever_the_config_says_is_refused(
    name: str,
    kernel: str,
    pico_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers before 5.2 did so for every family, without a word."""
    encoder = tiny_encoder(tiny_config(name), pico_tokenizer, "bidirectional")
    family = importlib.import_module(type(encoder.backbone).__module__)

    def ignoring(create):
        def mask(config, inputs_embeds, *, or_mask_function=None, **kwargs):
            del or_mask_function
            as_shipped = tiny_config(name)
            as_shipped._attn_implementation = config._attn_implementation
            return create(as_shipped, inputs_embeds, allow_is_causal_skip=False, **kwargs)

        return mask

    for function in ("create_causal_mask", "create_sliding_window_causal_mask"):
        if hasattr(family, function):
            monkeypatch.setattr(family, function, ignoring(getattr(family, function)))
    with pytest.raises(ValueError, match=f"with {kernel} stays causal.*take another decoder"):
        prove_attention(encoder, "bidirectional", [kernel])


def mask_by_hand(length: int, width: int, attention: Direction, reach: int) -> Tensor:
    """Additive (1, 1, T, T): which tokens of a text, padded to T, each of its tokens sees."""
    query_T1, key_1T = torch.arange(width)[:, None], torch.arange(width)[None]
    distance_TT = query_T1 - key_1T
    seen_TT = (distance_TT.abs() <= reach) & (key_1T < length)
    if attention == "causal":
        seen_TT &= distance_TT >= 0
    seen_TT |= query_T1 >= length  # rows of padding need something to see
    return torch.where(seen_TT, 0.0, torch.finfo(torch.float32).min)[None, None]


REACH = {  # the farthest token a windowed layer sees, by the modelling code of each family
    ("mistral, window", "causal"): WINDOW - 1,
    ("mistral, window", "bidirectional"): WINDOW,
    ("gemma3", "causal"): WINDOW - 1,
    ("gemma3", "bidirectional"): WINDOW // 2,
}


@pytest.mark.parametrize("attention", DIRECTIONS)
@pytest.mark.parametrize("kernel", ["eager", "sdpa", PACKED])
@pytest.mark.parametrize("name", WINDOWED)
def test_texts_longer_than_the_window_see_it_and_no_more(
    name: str,
    kernel: str,
    attention: Direction,
    pico_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    tiny_encoder(tiny_config(name), pico_tokenizer, attention).save(tmp_path)
    encoder = Encoder.load(tmp_path, attn_implementation=kernel)
    generator = torch.Generator().manual_seed(1)
    lengths = [5 * WINDOW, 3 * WINDOW, WINDOW - 3]
    texts = [
        TokenizedText(torch.randint(3, 400, (length,), generator=generator).tolist(), 0)
        for length in lengths
    ]
    reference = Encoder.load(tmp_path, attn_implementation="eager").backbone
    with torch.inference_mode():
        states = encoder.token_states(texts)
        for text, states_TD in zip(texts, states, strict=True):
            length = len(text.ids)
            windowed, full = (
                mask_by_hand(length, length, attention, reach)
                for reach in (REACH[name, attention], length)
            )
            both = {"sliding_attention": windowed, "full_attention": full}
            expected = reference(
                input_ids=torch.tensor([text.ids]),
                attention_mask=both if name == "gemma3" else windowed,
                use_cache=False,
            ).last_hidden_state[0]
            torch.testing.assert_close(states_TD, expected, atol=1e-5, rtol=1e-4)


def test_a_window_shorter_than_the_probe_does_not_pass_for_causal_attention(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The first token cannot see the last one of such a text, however it looks."""
    config = tiny_config("mistral, window")
    config.sliding_window, config.num_hidden_layers = 3, 1
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    assert prove_attention(encoder, "bidirectional", ["eager", "sdpa"])
    with pytest.raises(ValueError, match="is not causal"):
        prove_attention(encoder, "causal", ["sdpa"])


def test_gemma_turned_in_memory_is_gemma_made_that_way(
    pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """transformers halves the window while it reads a config: saving must not halve it again."""
    turned = tiny_encoder(tiny_config("gemma3"), pico_tokenizer, "bidirectional").backbone
    content = tiny_config("gemma3").to_dict() | {"use_bidirectional_attention": True}
    made = AutoModel.from_config(type(turned.config).from_dict(content)).eval()
    made.load_state_dict(turned.state_dict())
    ids_1T = torch.arange(3, 43)[None]
    with torch.inference_mode():
        states = [each(input_ids=ids_1T).last_hidden_state for each in (turned, made)]
    torch.testing.assert_close(states[0], states[1], atol=1e-6, rtol=1e-5)
    turned.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["sliding_window"] == WINDOW
    assert written["use_bidirectional_attention"] is True
    set_attention(turned, "causal")
    assert (turned.config.sliding_window, is_causal(turned.config)) == (WINDOW, True)
    assert all(layer.self_attn.is_causal for layer in turned.layers)


def test_gemma_that_was_made_bidirectional_the_common_way_is_left_alone(
    pico_tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = tiny_config("gemma3")
    config.is_causal = False
    encoder = tiny_encoder(config, pico_tokenizer, "bidirectional")
    assert encoder.backbone.config.sliding_window == WINDOW
    assert not encoder.backbone.config.use_bidirectional_attention


def test_the_window_is_that_of_the_layers_that_have_one() -> None:
    assert {name: window_of(tiny_config(name)) for name in NAMES} == {
        name: WINDOW if name in WINDOWED else None for name in NAMES
    }
    config = tiny_config("gemma3")
    config.layer_types = ["full_attention", "full_attention"]
    assert window_of(config) is None
