"""Mean pooling: the average of the pooled token states.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

from torch import Tensor, nn


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
        weight_BT1 = pool_mask_BT.unsqueeze(-1).to(states_BTD.dtype)
        return (states_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)
