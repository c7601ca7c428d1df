"""Activation checkpointing: the same gradient from fewer stored numbers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.encoder.encoder import Encoder
from model.training.data.batches import Batch
from model.training.devices.activations import recompute_activations
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.team import Team
from model.training.objective.objective import objective_of
from model.training.settings import LossSettings
from tests.unit.test_grad_cache import batch_of
from tests.unit.test_trainer import SETTINGS, assert_same_steps


def with_dropout(encoder: Encoder, share: float) -> Encoder:
    """Dropout of attention weights, and of what every block's feed-forward layer gives out."""
    for block in encoder.backbone.layers:
        block.self_attn.attention_dropout = share
        block.mlp.register_forward_hook(
            lambda _module, _inputs, output: torch.nn.functional.dropout(output, share)
        )
    return encoder.train()


def gradients(encoder: Encoder, batch: Batch, backward: Callable[..., Tensor]) -> dict[str, Tensor]:
    objective = objective_of(
        batch,
        is_in_batch=True,
        loss=LossSettings("giga", 0.05),
        sizes=[32, 8],
        device=encoder.device,
    )
    texts = range(len(batch.items))
    parts = [[*texts[:9]], [*texts[9:]]] if backward is cached_backward else [[*texts]]
    encoder.zero_grad()
    torch.manual_seed(0)
    backward(
        lambda part: encoder.embed([batch.items[text] for text in part]),
        parts, len(batch.items), objective.loss_and_gradient, Team(),
    )  # fmt: skip
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backward", [plain_backward, cached_backward])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_is_that_of_kept_activations(
    pico_folder: Path,
    pico_texts: list[str],
    tmp_path: Path,
    backward: Callable[..., Tensor],
    dropout: float,
) -> None:
    """Packed texts, Matryoshka sizes and masks, with dropout and both backward passes."""
    kept = with_dropout(Encoder.load(pico_folder), dropout)
    forgetful = with_dropout(Encoder.load(pico_folder), dropout)
    assert kept.is_packed
    batch = batch_of(kept, pico_texts, tmp_path, "retrieval", 3)
    recompute_activations(forgetful)
    expected, found = gradients(kept, batch, backward), gradients(forgetful, batch, backward)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def stored_bytes(encoder: Encoder, batch: Batch) -> int:
    """Bytes that the graph of one forward pass holds, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    held: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        embedding = encoder.train().embed(batch.items)
    assert embedding.requires_grad
    return sum(held.values())


def test_the_graph_holds_less(pico_folder: Path, pico_texts: list[str], tmp_path: Path) -> None:
    kept, forgetful = Encoder.load(pico_folder), Encoder.load(pico_folder)
    batch = batch_of(kept, pico_texts, tmp_path, "retrieval", 3)
    recompute_activations(forgetful)
    assert stored_bytes(forgetful, batch) < 0.25 * stored_bytes(kept, batch)


def test_a_training_takes_the_same_steps(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """Micro-batches of one step in some, of several in others, in what `train` itself sets up."""
    kept = dataclasses.replace(SETTINGS, micro_batch_tokens=150)
    forgetful = dataclasses.replace(kept, activation_checkpointing=True)
    assert_same_steps(pico_folder, pico_texts, tmp_path, kept, forgetful)
