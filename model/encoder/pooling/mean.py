"""Mean pooling: the average of the pooled token states.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

from torch import Tensor, nn

from model.encoder.pooling.pooling_block import token_mean


class MeanPooling(nn.Module):
    """Average of the token states under the mask, the same for any amount of padding."""

    def forward(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """Mean over the tokens whose mask is 1.

        Args:
            states_BTD: Last hidden states of the decoder.
            pool_mask_BT: 1 where a token counts; every row holds at least one.

        Returns:
            Vectors of shape (B, D).
        """
        return token_mean(states_BTD, pool_mask_BT)
