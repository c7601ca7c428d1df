"""Last-token pooling: the state of the end-of-text token.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

from torch import Tensor, nn

from model.encoder.pooling.pooling_block import last_token


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
        return last_token(states_BTD, pool_mask_BT)
