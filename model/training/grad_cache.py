"""One backward pass of a loss over a whole batch, in the memory of one micro-batch if need be.

A contrastive loss couples all texts of a batch, so its gradient is no sum over parts of the
batch. Both ways here take the gradient of the loss by the embeddings first. `plain_backward` keeps
the graphs of all parts meanwhile. GradCache keeps none: it embeds everything without a graph, then
each part again with one, and pushes its share of the gradient through. It costs one more forward
pass.

Shape letters: M = texts of the batch, D = embedding size.

Source: Gao et al. 2021, arXiv:2101.06983, section 3.2.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Shares = Callable[[Tensor], Iterator[Tensor]]
"""From (M, D) embeddings to shares of the loss: scalars that add up to it."""


def plain_backward(
    embed: Callable[[list[int]], Tensor], parts: list[list[int]], shares: Shares
) -> Tensor:
    """Add the gradient of the loss to the parameters, holding the graphs of all parts at once.

    Args:
        embed: Embeddings of the texts of these indices.
        parts: Every text index once, over the micro-batches.
        shares: The loss of the embeddings, in the order of the text indices.

    Returns:
        The loss, detached.
    """
    embedding_MD = _in_text_order([embed(part) for part in parts], parts)
    loss, gradient_MD = _gradient(embedding_MD.detach(), shares)
    embedding_MD.backward(gradient_MD)
    return loss


def cached_backward(
    embed: Callable[[list[int]], Tensor], parts: list[list[int]], shares: Shares
) -> Tensor:
    """Add the same gradient as `plain_backward`, holding the graph of one part at a time.

    Each part is embedded twice under the same random state, so dropout masks agree.
    """
    states: list[list[Tensor]] = []
    embeddings: list[Tensor] = []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            embeddings.append(embed(part))
    loss, gradient_MD = _gradient(_in_text_order(embeddings, parts), shares)
    for part, state in zip(parts, states, strict=True):
        _set_random_state(state)
        embed(part).backward(gradient_MD[torch.tensor(part, device=gradient_MD.device)])
    return loss


def _gradient(embedding_MD: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the embeddings; the graph of one share exists at a time."""
    leaf_MD = embedding_MD.requires_grad_()
    total = embedding_MD.new_zeros(())
    for share in shares(leaf_MD):
        share.backward()
        total += share.detach()
    assert leaf_MD.grad is not None  # noqa: S101 - backward has just set it
    return total, leaf_MD.grad


def _in_text_order(embeddings: list[Tensor], parts: list[list[int]]) -> Tensor:
    stacked_MD = torch.cat(embeddings)
    place_M = torch.tensor([text for part in parts for text in part]).argsort()
    return stacked_MD[place_M.to(stacked_MD.device)]


def _random_state() -> list[Tensor]:
    state = [torch.get_rng_state()]
    if torch.cuda.is_available():
        state.append(torch.cuda.get_rng_state())
    return state


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
