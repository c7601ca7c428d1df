"""Pooling modules against plain formulas in float64."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder.pooling.build import KINDS, LatentSize, PoolingSettings, build_pooling
from model.encoder.pooling.last import LastPooling
from model.encoder.pooling.latent import LatentPooling, SentenceLatentPooling
from model.encoder.pooling.mean import MeanPooling
from model.encoder.pooling.pooling_block import save_block
from model.encoder.pooling.weighted_mean import WeightedMeanPooling
from tasks.params.training import Backbone

SIZE = LatentSize(num_latents=7, num_heads=3, head_dim=5, expansion=2)


@pytest.fixture(name="states_BTD")
def make_states() -> Tensor:
    return torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(name="mask_BT")
def make_mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]])


def test_mean_is_the_average_of_the_masked_tokens(states_BTD: Tensor, mask_BT: Tensor) -> None:
    pooled = MeanPooling()(states_BTD, mask_BT)
    for row, states_TD in enumerate(states_BTD.double()):
        expected = states_TD[mask_BT[row].bool()].mean(dim=0)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


def test_weighted_mean_weighs_a_token_by_its_place(states_BTD: Tensor, mask_BT: Tensor) -> None:
    pooled = WeightedMeanPooling()(states_BTD, mask_BT)
    for row, states_TD in enumerate(states_BTD.double().numpy()):
        places = np.flatnonzero(mask_BT[row])
        expected = np.average(states_TD[places], axis=0, weights=places + 1)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


def test_last_takes_the_last_masked_token_with_either_padding(
    states_BTD: Tensor, mask_BT: Tensor
) -> None:
    pooled = LastPooling()(states_BTD, mask_BT)
    assert torch.equal(pooled, states_BTD[[0, 1, 2], [5, 1, 4]])
    left_BT = torch.tensor([[0, 0, 1, 1, 1, 1]] * 3)
    assert torch.equal(LastPooling()(states_BTD, left_BT), states_BTD[:, 5])
    first_BT = torch.tensor([[1, 0, 0, 0, 0, 0]] * 3)
    assert torch.equal(LastPooling()(states_BTD, first_BT), states_BTD[:, 0])


def _nv_embed(block: LatentPooling, states_TD: Tensor, pool_T: Tensor) -> Tensor:
    """modeling_nvembed.py of NV-Embed, token by token and head by head, in float64."""
    weight = {name: value.double() for name, value in block.state_dict().items()}

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        scaled = centred / torch.sqrt(centred.square().mean() + 1e-5)
        return scaled * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    inner = SIZE.num_heads * SIZE.head_dim
    latents = [norm("latent_norm", latent) for latent in weight["latents"]]
    keys = [weight["to_key_value.weight"][:inner] @ latent for latent in latents]
    values = [weight["to_key_value.weight"][inner:] @ latent for latent in latents]
    pooled = []
    for x in states_TD.double()[pool_T.bool()]:
        query = weight["to_query.weight"] @ norm("token_norm", x)
        heads = []
        for head in range(SIZE.num_heads):
            part = slice(head * SIZE.head_dim, (head + 1) * SIZE.head_dim)
            logits = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(
                SIZE.head_dim
            )
            share = logits.exp() / logits.exp().sum()
            heads.append(sum(share[r] * values[r][part] for r in range(SIZE.num_latents)))
        x = weight["to_out.weight"] @ torch.cat(heads) + x
        hidden = weight["feed_in.weight"] @ norm("feed_norm", x) + weight["feed_in.bias"]
        value, gate = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
        gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        x = weight["feed_out.weight"] @ (value * gelu) + weight["feed_out.bias"] + x
        pooled.append(x)
    return torch.stack(pooled).mean(dim=0)


def test_latent_attention_follows_the_code_of_nv_embed(states_BTD: Tensor, mask_BT: Tensor) -> None:
    block = LatentPooling(8, **asdict(SIZE))
    with torch.no_grad():
        for weight in block.parameters():  # norms and biases away from their neutral start
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
        pooled = block(states_BTD, mask_BT)
    for row in range(3):
        expected = _nv_embed(block, states_BTD[row], mask_BT[row])
        np.testing.assert_allclose(pooled[row], expected, atol=1e-5)


def test_latent_attention_learns_through_every_weight(states_BTD: Tensor, mask_BT: Tensor) -> None:
    block = LatentPooling(8, **asdict(SIZE))
    block(states_BTD, mask_BT).square().sum().backward()
    for name, weight in block.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_latent_blocks_start_alike_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (LatentPooling(8, **asdict(SIZE)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert first.latents.std() > 0.5


def test_the_published_latent_block_is_the_same_block(
    states_BTD: Tensor, mask_BT: Tensor, tmp_path: Path
) -> None:
    block = LatentPooling(8, **asdict(SIZE))
    with torch.no_grad():
        block.latents.add_(1.0)
        save_block(block, tmp_path / "a", include_prompt=False)
        loaded = SentenceLatentPooling.load(str(tmp_path / "a"))
        loaded.save(str(tmp_path / "b"))
        again = SentenceLatentPooling.load(str(tmp_path / "b"))
        right_BT = mask_BT.sort(dim=1, descending=True).values
        features = {"token_embeddings": states_BTD, "attention_mask": right_BT}
        whole = again(dict(features))["sentence_embedding"]
        features["prompt_length"] = 1
        without = again(features)["sentence_embedding"]
    assert torch.equal(whole, block(states_BTD, right_BT))
    right_BT[:, 0] = 0
    assert torch.equal(without, block(states_BTD, right_BT))


def test_settings_survive_json_and_choose_the_module() -> None:
    for name, kind in KINDS.items():
        settings = PoolingSettings(kind=name, pool_prompt=False, latent=SIZE, layer_tokens="mean")
        assert PoolingSettings.from_json(settings.to_json()) == settings
        assert type(build_pooling(settings, hidden_size=8, num_layers=4)) is kind.module


def test_params_offer_exactly_the_kinds_there_are() -> None:
    """They name them without loading torch."""
    assert get_args(Backbone.model_fields["pooling"].annotation) == tuple(KINDS)


def test_every_kind_is_published_in_one_way() -> None:
    for name, kind in KINDS.items():
        has_weights = bool(list(block_of(name).parameters()))
        assert has_weights == (kind.published is not None) == (not kind.stock_mode), name


def block_of(kind: str) -> nn.Module:
    settings = PoolingSettings(kind=kind, latent=SIZE, layer_tokens="mean")
    return build_pooling(settings, hidden_size=8, num_layers=4)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'max' is unknown: use mean, .*, latent or multilayer"):
        build_pooling(PoolingSettings(kind="max"), hidden_size=8, num_layers=4)
    with pytest.raises(ValueError, match="num_latents"):
        build_pooling(PoolingSettings(kind="latent"), hidden_size=8, num_layers=4)
    with pytest.raises(ValueError, match="multilayer pooling needs layer_tokens"):
        build_pooling(PoolingSettings(kind="multilayer", latent=SIZE), hidden_size=8, num_layers=4)


def test_pooling_runs_in_bf16(states_BTD: Tensor, mask_BT: Tensor) -> None:
    for module in (MeanPooling(), LastPooling(), LatentPooling(8, **asdict(SIZE))):
        with torch.no_grad():
            full = module(states_BTD, mask_BT)
            half = module.to(torch.bfloat16)(states_BTD.bfloat16(), mask_BT)
        assert half.dtype == torch.bfloat16
        assert F.cosine_similarity(full, half.float()).min() > 0.99
