"""Last-token pooling: the state of the end-of-text token.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

import torch
from torch import Tensor, nn


class LastPooling(nn.Module):
    """State of the last pooled token; the tokenizer of such an encoder ends every text with EOS."""

    def forward(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """State at the last position whose mask is 1, whichever side is padded.

        Args:
            states_BTD: Last hidden states of the decoder.
            pool_mask_BT: 1 where a token counts; every row holds at least one.

        Returns:
            Vectors of shape (B, D).
        """
        position_T = torch.arange(states_BTD.shape[1], device=states_BTD.device)
        last_B = (pool_mask_BT.to(torch.bool) * position_T).argmax(dim=1)
        row_B = torch.arange(states_BTD.shape[0], device=states_BTD.device)
        return states_BTD[row_B, last_B]
