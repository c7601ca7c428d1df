"""Attention in float32 under bfloat16 autocast: exact values, gradients, nothing else touched."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.training.cpu_attention import Float32Attention


def heads(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 9, 8, generator=generator) for _ in range(3)]


def test_attention_is_computed_in_float32_from_bfloat16_inputs() -> None:
    query, key, value = (tensor.bfloat16() for tensor in heads(0))
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[..., 6:] = False
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask)
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        got = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected.bfloat16())


@pytest.mark.parametrize("by_name", [True, False])
def test_gradients_flow_to_the_inputs(by_name: bool) -> None:
    inputs = [tensor.bfloat16().requires_grad_() for tensor in heads(1)]
    named = dict(zip(("query", "key", "value"), inputs, strict=True))
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        if by_name:
            output = F.scaled_dot_product_attention(**named)
        else:
            output = F.scaled_dot_product_attention(*inputs)
    output.float().square().sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0


def test_other_operations_stay_bfloat16() -> None:
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        assert nn.Linear(4, 4)(torch.ones(1, 4)).dtype == torch.bfloat16


def test_autocast_is_back_after_the_call() -> None:
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        F.scaled_dot_product_attention(*heads(2))
        assert torch.is_autocast_enabled("cpu")
