"""A softmax temperature of attention, baked into the weights of the queries.

Logits are linear in the query, so queries over the temperature are logits over it: exact for every
kernel, and whoever loads the folder has it.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

QUERY_WEIGHTS = ("q_norm", "q_b_proj", "q_proj")
"""Modules a query may come from, the last one on its way first."""


@torch.no_grad()
def temper_attention(decoder: PreTrainedModel, temperature: float) -> None:
    """Divide the logits of every attention softmax of a decoder by `temperature`, in place.

    Args:
        decoder: Its attention modules hold one of `QUERY_WEIGHTS`.
        temperature: Below 1 sharpens attention and keeps long texts apart; 1 changes nothing.

    Raises:
        ValueError: The queries are not found, or logits are capped after the product.

    Source: TempScale, Zhou et al. 2024, arXiv:2410.24200.
    """
    if temperature == 1.0:
        return
    if getattr(decoder.config, "attn_logit_softcapping", None) is not None:
        raise ValueError(_refusal(decoder, "caps its attention logits"))
    attentions = [block for block in decoder.modules() if hasattr(block, "o_proj")]
    modules = [module for block in attentions if (module := _query_module(block)) is not None]
    if len(modules) != decoder.config.num_hidden_layers:
        raise ValueError(_refusal(decoder, "has no query weights by a known name"))
    for module in modules:
        _divide_output(module, temperature)


def _query_module(attention: nn.Module) -> nn.Module | None:
    found = [getattr(attention, name, None) for name in QUERY_WEIGHTS]
    return next((module for module in found if module is not None), None)


def _divide_output(module: nn.Module, temperature: float) -> None:
    """Scale a linear layer or a norm; norms of Gemma multiply by 1 + weight."""
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]  # a parameter
    if isinstance(module, nn.Linear):
        weight /= temperature
        if module.bias is not None:
            module.bias.div_(temperature)
        return
    probe_D = torch.linspace(-1.0, 1.0, weight.shape[-1], device=weight.device, dtype=weight.dtype)
    before_D = module(probe_D)
    kept = weight.clone()
    for offset in (0.0, 1.0):
        weight.copy_((kept + offset) / temperature - offset)
        if torch.allclose(module(probe_D) * temperature, before_D, rtol=1e-3, atol=1e-6):
            return
    raise ValueError(f"{type(module).__name__} is a norm of an unknown kind")


def _refusal(decoder: PreTrainedModel, why: str) -> str:
    return f"{type(decoder).__name__} {why}: set backbone.attention_temperature to 1.0"
