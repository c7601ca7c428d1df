"""The gradient through a cut is that of the whole graph, whose first half is passed once."""

import torch

from model.training.objective.graph_cut import GraphCut


def test_the_gradient_is_that_of_the_whole_graph_and_goes_on_once() -> None:
    leaf = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, severed = leaf.clone().requires_grad_(), leaf.clone().requires_grad_()
    (whole.sin() * whole.exp().detach()).square().sum().backward()
    cut, times = GraphCut(), []
    first, unused = severed.sin(), severed.cos()
    first.register_hook(lambda _: times.append("first"))
    unused.register_hook(lambda _: times.append("unused"))
    begun = cut.off(first)
    cut.off(unused)
    for row in range(6):
        (begun[row] * leaf[row].exp()).square().sum().backward()
    assert severed.grad is None
    cut.hand_on()
    torch.testing.assert_close(severed.grad, whole.grad, rtol=1e-12, atol=0)
    assert times == ["first"]


def test_a_cut_that_no_loss_has_reached_hands_on_nothing() -> None:
    leaf = torch.ones(2, requires_grad=True)
    cut = GraphCut()
    cut.off(leaf * 2)
    cut.hand_on()
    assert leaf.grad is None
