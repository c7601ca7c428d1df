"""Choosing and removing blocks, against plain float64 formulas and blocks that do nothing."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteSWAConfig,
    OlmoHybridConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.mamba.configuration_mamba import MambaConfig

from model.backbone.decoder import named_as_unfit
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from model.encoder.tokenization import TokenizedText
from model.pruning import (
    Distances,
    blocks_to_remove,
    choose_blocks,
    count_blocks,
    measure_distances,
    prune_encoder,
    remove_blocks,
)
from tests.unit.tiny_decoders import NAMES, tiny_config, tiny_encoder

ROOT = Path(__file__).parents[2]

SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.1,
}


@pytest.fixture
def deep_encoder(pico_encoder: Encoder) -> Encoder:
    """Eight blocks of random weights, bidirectional."""
    torch.manual_seed(4)
    decoder = AutoModel.from_config(Qwen3Config(**SMALL, num_hidden_layers=8, is_causal=False))
    settings = PoolingSettings(kind="mean")
    return Encoder(decoder, pico_encoder.tokenizer, settings, max_length_tokens=64).eval()


@pytest.fixture
def items(pico_encoder: Encoder, pico_texts: list[str]) -> list[TokenizedText]:
    return pico_encoder.tokenize(pico_texts)


def make_identity(decoder: nn.Module, numbers: list[int]) -> None:
    for number in numbers:
        block = decoder.layers[number]
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.down_proj.weight)


def plain_states(encoder: Encoder, items: list[TokenizedText]) -> list[list[np.ndarray]]:
    """Per text the states x_0 ... x_L (T, D), block by block, one text at a time."""
    decoder = encoder.backbone
    result = []
    for item in items:
        ids = torch.tensor([item.ids])
        with torch.inference_mode():
            x = decoder.embed_tokens(ids)
            rotary = decoder.rotary_emb(x, torch.arange(len(item.ids))[None])
            states = [x]
            for block in decoder.layers:
                x = block(x, attention_mask=None, position_embeddings=rotary, is_causal=False)
                states.append(x)
        result.append([state[0].double().numpy() for state in states])
    return result


def plain_cosine(before: np.ndarray, after: np.ndarray) -> float:
    return float(before @ after / math.sqrt(before @ before) / math.sqrt(after @ after))


@pytest.mark.parametrize("tokens", ["all", "last"])
@pytest.mark.parametrize("run_length", [1, 3])
def test_distances_follow_their_formulas(
    deep_encoder: Encoder, items: list[TokenizedText], tokens: str, run_length: int
) -> None:
    ours = measure_distances(
        deep_encoder, items, run_length=run_length, tokens=tokens, batch_tokens=80
    )
    influence: list[list[float]] = [[] for _ in range(8)]
    angles: list[list[float]] = [[] for _ in range(9 - run_length)]
    for states in plain_states(deep_encoder, items):
        for token in range(len(states[0])) if tokens == "all" else [len(states[0]) - 1]:
            for i in range(8):
                influence[i].append(1 - plain_cosine(states[i][token], states[i + 1][token]))
            for i in range(9 - run_length):
                cosine = plain_cosine(states[i][token], states[i + run_length][token])
                angles[i].append(math.acos(cosine) / math.pi)
    np.testing.assert_allclose(ours.influence, [np.mean(row) for row in influence], atol=1e-6)
    np.testing.assert_allclose(ours.angles, [np.mean(row) for row in angles], atol=1e-6)


def test_distances_do_not_depend_on_the_batches(
    deep_encoder: Encoder, items: list[TokenizedText]
) -> None:
    wide, narrow = (
        measure_distances(deep_encoder, items, run_length=2, tokens="all", batch_tokens=budget)
        for budget in (10_000, 1)
    )
    np.testing.assert_allclose(wide.influence, narrow.influence, atol=1e-7)
    np.testing.assert_allclose(wide.angles, narrow.angles, atol=1e-7)


def test_blocks_that_do_nothing_are_the_ones_removed(
    deep_encoder: Encoder, items: list[TokenizedText], pico_texts: list[str]
) -> None:
    make_identity(deep_encoder.backbone, [1, 4, 6])
    distances = measure_distances(deep_encoder, items, run_length=3, tokens="all", batch_tokens=500)
    assert choose_blocks("block_influence", distances, 3) == [1, 4, 6]
    before = deep_encoder.encode(pico_texts, batch_tokens=500)
    remove_blocks(deep_encoder.backbone, [1, 4, 6])
    np.testing.assert_allclose(deep_encoder.encode(pico_texts, batch_tokens=500), before, atol=1e-6)


def test_a_run_of_blocks_that_does_nothing_is_the_one_removed(
    deep_encoder: Encoder, items: list[TokenizedText]
) -> None:
    make_identity(deep_encoder.backbone, [3, 4, 5])
    distances = measure_distances(deep_encoder, items, run_length=3, tokens="all", batch_tokens=500)
    assert distances.angles[3] == pytest.approx(0, abs=1e-6)
    assert choose_blocks("angular_distance", distances, 3) == [3, 4, 5]


def test_the_deepest_rule_keeps_the_final_block() -> None:
    distances = Distances([0.0] * 8, [0.0] * 7)
    assert choose_blocks("deepest", distances, 2) == [5, 6]
    assert choose_blocks("deepest", distances, 7) == [0, 1, 2, 3, 4, 5, 6]


def test_the_last_rule_keeps_the_first_blocks() -> None:
    distances = Distances([0.1] * 8, [0.1] * 7)
    assert choose_blocks("last", distances, 2) == [6, 7]
    assert choose_blocks("last", distances, 7) == [1, 2, 3, 4, 5, 6, 7]
    assert choose_blocks("last", distances, 0) == []


@pytest.mark.parametrize("method", ["block_influence", "angular_distance", "deepest", "last"])
def test_removing_no_block_chooses_none(method: str) -> None:
    assert choose_blocks(method, Distances([0.1, 0.2], [0.1, 0.2]), 0) == []


def test_no_choice_removes_every_block() -> None:
    with pytest.raises(ValueError, match="cannot remove 2 of 2 blocks"):
        choose_blocks("deepest", Distances([0.1, 0.2], [0.1]), 2)


@pytest.mark.parametrize(
    ("blocks", "fraction", "removed"),
    [
        (36, 0.25, 9),
        (28, 0.25, 7),
        (8, 0.25, 2),
        (8, 0.0, 0),
        (2, 0.25, 1),
        (1, 0.9, 0),
        (3, 0.99, 2),
    ],
)
def test_a_fraction_is_rounded_and_leaves_a_block(
    blocks: int, fraction: float, removed: int
) -> None:
    assert blocks_to_remove(blocks, fraction) == removed


def test_measuring_nothing_is_an_error(deep_encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="no calibration texts"):
        measure_distances(deep_encoder, [], run_length=1, tokens="all", batch_tokens=10)


def test_the_smaller_model_is_the_blocks_that_stay(
    deep_encoder: Encoder, items: list[TokenizedText]
) -> None:
    original = copy.deepcopy(deep_encoder)
    remove_blocks(deep_encoder.backbone, [2, 5])
    assert count_blocks(deep_encoder.backbone) == 6
    assert [block.self_attn.layer_idx for block in deep_encoder.backbone.layers] == list(range(6))
    for new, old in enumerate([0, 1, 3, 4, 6, 7]):
        expected = original.backbone.layers[old].state_dict()
        for name, value in deep_encoder.backbone.layers[new].state_dict().items():
            assert torch.equal(value, expected[name]), (new, name)


def test_the_smaller_model_saves_and_loads(
    deep_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    remove_blocks(deep_encoder.backbone, [0, 6])
    expected = deep_encoder.encode(pico_texts, batch_tokens=500)
    deep_encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    assert loaded.backbone.config.num_hidden_layers == 6
    assert len(loaded.backbone.config.layer_types) == 6
    np.testing.assert_array_equal(loaded.encode(pico_texts, batch_tokens=500), expected)


def test_the_type_of_each_block_moves_with_it(tmp_path: Path) -> None:
    """Masks come from the config by position: a block of local attention must stay local."""
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SMALL, num_hidden_layers=4, layer_types=types, sliding_window=3)
    torch.manual_seed(0)
    decoder = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for block in (decoder.layers[0], decoder.layers[3]):
            nn.init.zeros_(block.self_attn.o_proj.weight)
            nn.init.zeros_(block.mlp.down_proj.weight)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = decoder(input_ids=ids, use_cache=False).last_hidden_state
        remove_blocks(decoder, [0, 3])
        ours = decoder(input_ids=ids, use_cache=False).last_hidden_state
        decoder.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        again = loaded(input_ids=ids, use_cache=False).last_hidden_state
    assert decoder.config.layer_types == ["full_attention", "sliding_attention"]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, ours)


def test_the_cache_of_a_smaller_model_works(deep_encoder: Encoder) -> None:
    """A wrong layer_idx would write two blocks into one slot of the cache."""
    decoder = deep_encoder.backbone
    decoder.config.is_causal = True
    remove_blocks(decoder, [1, 2])
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        whole = decoder(input_ids=ids, use_cache=False).last_hidden_state
        first = decoder(input_ids=ids[:, :6], use_cache=True)
        second = decoder(input_ids=ids[:, 6:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.last_hidden_state, whole[:, 6:], rtol=1e-4, atol=1e-5)


def test_blocks_are_found_under_another_name() -> None:
    config = GPT2Config(
        vocab_size=50, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    decoder = AutoModel.from_config(config)
    remove_blocks(decoder, [1])
    assert len(decoder.h) == 2
    assert [block.attn.layer_idx for block in decoder.h] == [0, 1]


def deep_seek(layers: int, dense: int) -> PreTrainedConfig:
    """Its first blocks are dense, the others a mixture of experts."""
    config = tiny_config("deepseek_v3")
    config.num_hidden_layers, config.first_k_dense_replace = layers, dense
    return config


@pytest.mark.parametrize(("removed", "dense"), [([0], 1), ([1, 3], 1), ([2, 3], 2), ([0, 1], 0)])
def test_blocks_counted_from_the_first_are_counted_anew(
    pico_tokenizer: PreTrainedTokenizerFast,
    pico_texts: list[str],
    tmp_path: Path,
    removed: list[int],
    dense: int,
) -> None:
    """Otherwise the folder was loaded with random numbers for the blocks of the other kind."""
    encoder = tiny_encoder(deep_seek(5, 2), pico_tokenizer, "bidirectional")
    prune_encoder(encoder, removed)
    expected = encoder.encode(pico_texts, batch_tokens=500)
    loaded = encoder.save_proven(tmp_path, attn_implementation="sdpa")
    assert loaded.backbone.config.first_k_dense_replace == dense
    np.testing.assert_array_equal(loaded.encode(pico_texts, batch_tokens=500), expected)


FRESH = """
import sys
from pathlib import Path
import numpy as np
from model.encoder.encoder import Encoder
for folder in map(Path, sys.argv[1:]):
    encoder = Encoder.load(folder, attn_implementation="sdpa")
    np.save(folder / "fresh.npy", encoder.probe_vectors("sdpa"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("removed", [[], [0]])
def test_a_fresh_process_reads_the_saved_model_of_every_family(
    pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, removed: list[int]
) -> None:
    """What this process knows of a model beside its folder must not count."""
    expected: dict[Path, np.ndarray] = {}
    for number, name in enumerate(NAMES):
        encoder = tiny_encoder(tiny_config(name), pico_tokenizer, "bidirectional")
        if removed:
            prune_encoder(encoder, removed)
        encoder.save_proven(tmp_path / str(number), attn_implementation="sdpa")
        expected[tmp_path / str(number)] = encoder.probe_vectors("sdpa")
    command = [sys.executable, "-c", FRESH, *map(str, expected)]
    subprocess.run(command, cwd=ROOT, check=True)
    for folder, vectors in expected.items():
        np.testing.assert_allclose(np.load(folder / "fresh.npy"), vectors, atol=1e-5)


def test_blocks_counted_in_a_field_nobody_knows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.pruning.FIRST_BLOCKS_KEYS", ())
    decoder = AutoModel.from_config(deep_seek(4, 2))
    with pytest.raises(ValueError, match=r"describes another decoder .*layers\.1\.mlp"):
        remove_blocks(decoder, [0])


def test_a_config_that_refuses_the_blocks_that_stay_is_named(tmp_path: Path) -> None:
    """The check is the config's own, with an error of its own that is no ValueError."""
    kinds = ["linear_attention", "full_attention"]
    config = OlmoHybridConfig(**SMALL, num_hidden_layers=2, layer_types=kinds, pad_token_id=0)
    decoder = AutoModel.from_config(config)
    remove_blocks(decoder, [0])
    refused = pytest.raises(ValueError, match=r"OlmoHybridModel .*fails as an encoder")
    with refused, named_as_unfit(decoder):
        decoder.save_pretrained(tmp_path)


def test_rope_frequencies_of_each_block_go_with_it(tmp_path: Path) -> None:
    config = GraniteSWAConfig(**SMALL, num_hidden_layers=4, layer_rope_theta=[1e3, 1e4, 1e5, 1e6])
    decoder = AutoModel.from_config(config)
    remove_blocks(decoder, [1])
    assert decoder.config.layer_rope_theta == [1e3, 1e5, 1e6]
    decoder.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.layer_rope_theta == [1e3, 1e5, 1e6]


def test_a_list_that_is_made_of_other_fields_follows_them() -> None:
    decoder = AutoModel.from_config(FalconH1Config(**SMALL, num_hidden_layers=3, mamba_n_heads=8))
    remove_blocks(decoder, [1])
    assert len(decoder.config.layers_block_type) == 2


def test_numbers_of_blocks_in_a_list_nobody_knows_are_refused() -> None:
    """Left alone they would be read as numbers of other blocks."""
    decoder = AutoModel.from_config(tiny_config("llama"))
    decoder.config.special_layers = [1]
    with pytest.raises(ValueError, match=r"llama lists special_layers.*prune\.fraction to 0"):
        remove_blocks(decoder, [0])
    remove_blocks(decoder, [])


def test_blocks_with_a_config_each_are_refused_by_name() -> None:
    decoder = AutoModel.from_config(tiny_config("llama"))
    decoder.config.per_layer_config = {1: {"intermediate_size": 48}}
    with pytest.raises(ValueError, match=r"LlamaModel have a config each .*prune\.fraction to 0"):
        remove_blocks(decoder, [1])


def test_an_unknown_architecture_is_refused() -> None:
    decoder = AutoModel.from_config(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2))
    decoder.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="has no list of 5 blocks"):
        count_blocks(decoder)
