"""Properties of every pooling: padding and unpooled tokens change nothing."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.encoder.pooling.build import LatentSize, PoolingSettings, build_pooling
from model.encoder.pooling.multilayer import MultilayerPooling

HIDDEN = 4
Kind = Literal["mean", "last", "latent", "multilayer"]
KINDS: list[Kind] = ["mean", "last", "latent", "multilayer"]
LATENT = LatentSize(num_latents=3, num_heads=2, head_dim=2, expansion=2)


def pooling(kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    """The pooling of a decoder of two layers, the second of which doubles the states."""
    made = PoolingSettings(kind=kind, latent=LATENT, layer_tokens="mean")
    module = build_pooling(made, hidden_size=HIDDEN, num_layers=2).double()
    if not isinstance(module, MultilayerPooling):
        return module
    return lambda states_BTD, mask_BT: module(
        torch.stack([module.pool_tokens(each, mask_BT) for each in (states_BTD, 2 * states_BTD)], 1)
    )


def states(seed: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, length, HIDDEN, generator=generator, dtype=torch.float64)


seeds = st.integers(0, 2**20)
lengths = st.integers(1, 9)
paddings = st.integers(0, 5)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, length=lengths, left=paddings, right=paddings, garbage=st.floats(-1e3, 1e3))
def test_padding_on_either_side_changes_nothing(
    kind: Kind,
    seed: int,
    length: int,
    left: int,
    right: int,
    garbage: float,
) -> None:
    module, states_1TD = pooling(kind), states(seed, length)
    padded_1TD = nn.functional.pad(states_1TD, (0, 0, left, right), value=garbage)
    mask_1T = nn.functional.pad(torch.ones(1, length), (left, right))
    with torch.no_grad():
        plain = module(states_1TD, torch.ones(1, length))
        padded = module(padded_1TD, mask_1T)
    torch.testing.assert_close(padded, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, length=lengths, prompt=paddings)
def test_tokens_of_an_unpooled_prompt_change_nothing(
    kind: Kind, seed: int, length: int, prompt: int
) -> None:
    module, states_1TD = pooling(kind), states(seed, prompt + length)
    mask_1T = torch.cat([torch.zeros(1, prompt), torch.ones(1, length)], dim=1)
    with torch.no_grad():
        whole = module(states_1TD, mask_1T)
        text = module(states_1TD[:, prompt:], torch.ones(1, length))
    torch.testing.assert_close(whole, text, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=seeds, length=lengths, other=lengths)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(
    kind: Kind, seed: int, length: int, other: int
) -> None:
    module, width = pooling(kind), max(length, other)
    rows = [states(seed, length), states(seed + 1, other)]
    batch_BTD = torch.cat([nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows])
    mask_BT = torch.tensor([[1] * n + [0] * (width - n) for n in (length, other)])
    with torch.no_grad():
        together = module(batch_BTD, mask_BT)
        alone = torch.cat([module(row, torch.ones(1, row.shape[1])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["mean", "latent", "multilayer"])
@settings(deadline=None, max_examples=25)
@given(seed=seeds, length=lengths, data=st.data())
def test_the_order_of_tokens_does_not_matter_where_all_are_pooled(
    kind: Kind, seed: int, length: int, data: st.DataObject
) -> None:
    module, states_1TD = pooling(kind), states(seed, length)
    order = data.draw(st.permutations(range(length)))
    with torch.no_grad():
        plain = module(states_1TD, torch.ones(1, length))
        shuffled = module(states_1TD[:, order], torch.ones(1, length))
    torch.testing.assert_close(shuffled, plain, rtol=1e-10, atol=1e-10)
