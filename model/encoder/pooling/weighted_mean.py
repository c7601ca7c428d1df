"""Weighted mean pooling: later tokens, which have seen more of a causal text, count for more.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

import torch
from torch import Tensor, nn

from model.encoder.pooling.pooling_block import token_mean


class WeightedMeanPooling(nn.Module):
    """Average of the token states under the mask, each weighted by its place in the text."""

    def forward(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """Mean over the tokens whose mask is 1, the token at place t (from 1) with weight t.

        A prompt that is left out keeps its places.

        Args:
            states_BTD: Last hidden states of the decoder, padded on the right.
            pool_mask_BT: 1 where a token counts; every row holds at least one.

        Returns:
            Vectors of shape (B, D).

        Source: Muennighoff 2022, SGPT, arXiv:2202.08904, eq. 2.
        """
        place_T = torch.arange(1, states_BTD.shape[1] + 1, device=states_BTD.device)
        return token_mean(states_BTD, pool_mask_BT * place_T)
