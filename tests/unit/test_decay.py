"""Decay is for matrices; norms and biases keep their size."""

import torch

from model.training.decay import decay_groups


def test_matrices_decay_and_vectors_do_not() -> None:
    layer, norm = torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)
    decaying, kept = decay_groups([*layer.parameters(), *norm.parameters()], 0.1)
    assert [len(p) for p in decaying["params"]] == [2]
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in kept["params"]] == [id(layer.bias), id(norm.weight), id(norm.bias)]
