"""One backward pass of a loss over a whole batch, in the memory of one micro-batch if need be.

A contrastive loss couples all texts of a batch, so its gradient is no sum over micro-batches. Both
ways here take the gradient of the loss by the embeddings first. `plain_backward` keeps all
graphs meanwhile. GradCache keeps none: it embeds everything without a graph, then each micro-batch
again with one, and pushes its share of the gradient through. It costs one more forward
pass.

Shape letters: M = texts of the batch, D = embedding size.

Source: Gao et al. 2021, arXiv:2101.06983, section 3.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.training.devices.team import Team

LossAndGradient = Callable[[Tensor, Team], tuple[Tensor, Tensor]]
"""From the (M, D) embeddings, without a graph, to this process's share of the loss and of its
gradient by them, (M, D): over the team both add up."""


def plain_backward(
    embed: Callable[[list[int]], Tensor],
    micro_batches: list[list[int]],
    num_texts: int,
    loss_of: LossAndGradient,
    team: Team,
) -> Tensor:
    """Add this process's share of the gradient to the parameters, holding all graphs.

    Args:
        embed: Embeddings of the texts of these indices.
        micro_batches: Every text index of this process once, over the micro-batches.
        num_texts: Texts of the whole batch, M.
        loss_of: The loss of the embeddings, in the order of the text indices.
        team: The processes of the training.

    Returns:
        The loss of the whole batch, detached.
    """
    embedding = team.together(
        lambda: torch.cat([embed(micro_batch) for micro_batch in micro_batches])
    )
    loss, gradient = _gradient(embedding, micro_batches, num_texts, loss_of, team)
    team.together(lambda: embedding.backward(gradient))
    return loss


def cached_backward(
    embed: Callable[[list[int]], Tensor],
    micro_batches: list[list[int]],
    num_texts: int,
    loss_of: LossAndGradient,
    team: Team,
) -> Tensor:
    """Add the same gradient as `plain_backward`, holding the graph of one micro-batch at a time.

    Each is embedded twice under the same random state, so dropout masks agree.
    """
    states: list[list[Tensor]] = []
    embeddings: list[Tensor] = []

    def embed_all() -> Tensor:
        with torch.no_grad():
            for micro_batch in micro_batches:
                states.append(_random_state())
                embeddings.append(embed(micro_batch))
        return torch.cat(embeddings)

    loss, gradient = _gradient(team.together(embed_all), micro_batches, num_texts, loss_of, team)
    gradients = gradient.split([len(micro_batch) for micro_batch in micro_batches])

    def embed_again() -> None:
        for micro_batch, state, own in zip(micro_batches, states, gradients, strict=True):
            _set_random_state(state)
            embed(micro_batch).backward(own)

    team.together(embed_again)
    return loss


def _gradient(
    embedding: Tensor,
    micro_batches: list[list[int]],
    num_texts: int,
    loss_of: LossAndGradient,
    team: Team,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient by the embeddings of this process in the order given."""
    texts = [text for micro_batch in micro_batches for text in micro_batch]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    place = torch.tensor(order, device=embedding.device)
    in_order = team.together(lambda: embedding.detach()[place])
    every_MD = team.gather(in_order, sorted(texts), num_texts)
    loss, gradient_MD = team.together(lambda: loss_of(every_MD, team))
    team.add_up(gradient_MD)
    own = torch.tensor(texts, device=embedding.device)
    return team.add_up(loss), team.together(lambda: gradient_MD[own])


def _random_state() -> list[Tensor]:
    state = [torch.get_rng_state()]
    if torch.cuda.is_available():
        state.append(torch.cuda.get_rng_state())
    return state


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
