"""One backward pass of a loss over a whole batch, in the memory of one micro-batch if need be.

A contrastive loss couples all texts of a batch, so its gradient is no sum over parts of the
batch. GradCache gets the exact gradient anyway: embed everything without a graph, take the
gradient of the loss by the embeddings, then embed each part again with a graph and push its share
of that gradient through. It costs one more forward pass.

Shape letters: M = texts of the batch, D = embedding size.

Source: Gao et al. 2021, arXiv:2101.06983, section 3.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def plain_backward(
    embed: Callable[[list[int]], Tensor],
    parts: list[list[int]],
    loss: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add the gradient of `loss` to the parameters, holding the graphs of all parts at once.

    Args:
        embed: Embeddings of the texts of these indices.
        parts: Every text index once, over the micro-batches.
        loss: Scalar loss of the (M, D) embeddings, in the order of the text indices.

    Returns:
        The loss, detached.
    """
    embedding_MD = _in_text_order([embed(part) for part in parts], parts)
    value = loss(embedding_MD)
    value.backward()
    return value.detach()


def cached_backward(
    embed: Callable[[list[int]], Tensor],
    parts: list[list[int]],
    loss: Callable[[Tensor], Tensor],
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
    embedding_MD = _in_text_order(embeddings, parts).requires_grad_()
    value = loss(embedding_MD)
    value.backward()
    gradient_MD = embedding_MD.grad
    assert gradient_MD is not None  # noqa: S101 - backward has just set it
    for part, state in zip(parts, states, strict=True):
        _set_random_state(state)
        embed(part).backward(gradient_MD[torch.tensor(part, device=gradient_MD.device)])
    return value.detach()


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
