"""How many tokens are worked on at once, and the micro-batches that a batch is cut into.

One that does not fit the device's memory is no fault: the step is taken again with ones of half the
size, on all processes alike, and so are all that follow.
"""

import logging
from collections.abc import Sequence

import torch

from model.encoder.tokenization import token_budget_batches
from model.training.devices.team import Team

FEWEST_TOKENS = 256
"""Micro-batches are not halved below this."""

logger = logging.getLogger(__name__)


class MicroBatches:
    """The size of a micro-batch, and what it makes of a batch."""

    def __init__(self, tokens: int, *, is_packed: bool) -> None:
        """Begin with `tokens`, padding included unless texts are packed."""
        self.tokens = self.asked_tokens = tokens
        self._is_packed = is_packed

    def cut(self, lengths: Sequence[int], team: Team) -> list[list[int]]:
        """The texts of this process, each once, in micro-batches that fit.

        Where processes share weights all have equally many, and some may be empty.

        Args:
            lengths: Tokens of every text of the batch.
            team: The processes of the training.
        """
        own = team.texts(lengths)
        own_lengths = [lengths[text] for text in own]
        batches = token_budget_batches(own_lengths, self.tokens, is_packed=self._is_packed)
        micro_batches = [[own[place] for place in micro_batch] for micro_batch in batches]
        if team.shares_weights:
            micro_batches += [[] for _ in range(team.most(len(micro_batches)) - len(micro_batches))]
        return micro_batches

    @property
    def can_halve(self) -> bool:
        """Whether smaller ones are worth a try."""
        return self.tokens >= 2 * FEWEST_TOKENS

    def halve(self, step: int) -> None:
        """Go on with half the tokens, for `step` and those that follow.

        Call it when the exception is gone: it holds the tensors that were in the way.
        """
        self.tokens //= 2
        logger.warning(
            "step %d: out of memory; going on with micro-batches of %d tokens, set "
            "micro_batch_tokens to that to save the attempt",
            *(step, self.tokens),
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
