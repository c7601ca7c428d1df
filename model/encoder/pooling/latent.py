"""Latent attention pooling: every token looks up a trained array, then the mean is taken.

The arithmetic follows the published code of NV-Embed (arXiv:2405.17428, modeling_nvembed.py), which
differs from the text of the paper: normalised inputs, residuals and a gated feed-forward layer.

This file is copied, with `pooling_block.py`, into each published folder whose pooling is `latent`;
sentence-transformers imports it from there.

Shape letters: B = texts, T = tokens, D = hidden size.
"""

import torch
from torch import Tensor, nn

from .pooling_block import PoolingBlock, PublishedBlock, same_start, token_mean  # noqa: TID252 - published, they lie side by side in no package of ours


class LatentPooling(PoolingBlock):
    """Cross-attention of the tokens to trained vectors, a GEGLU layer, then the mean."""

    def __init__(
        self, hidden_size: int, num_latents: int, num_heads: int, head_dim: int, expansion: int
    ) -> None:
        """Build the block; the weights are the same in every process.

        Args:
            hidden_size: Size of the decoder's states and of the latents.
            num_latents: Length of the latent array (512 in NV-Embed and GigaEmbeddings).
            num_heads: Attention heads (8 in both).
            head_dim: Size of a head; NV-Embed takes the hidden size, small decoders less.
            expansion: Width of the feed-forward layer over the hidden size (4 in both).
        """
        super().__init__()
        with same_start():
            self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
            self.token_norm = nn.LayerNorm(hidden_size)
            self._add_layers(
                hidden_size=hidden_size,
                num_heads=num_heads,
                head_dim=head_dim,
                expansion=expansion,
            )

    def forward(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """Mean over the tokens whose mask is 1, after the block.

        Args:
            states_BTD: Last hidden states of the decoder.
            pool_mask_BT: 1 where a token counts; every row holds at least one.

        Returns:
            Vectors of shape (B, D).
        """
        found_BTD = self._attend(self.token_norm(states_BTD), self.latent_norm(self.latents))
        return token_mean(self._feed(found_BTD + states_BTD), pool_mask_BT)


class SentenceLatentPooling(PublishedBlock, LatentPooling):
    """The same block as a module of sentence-transformers: a dict of features in and out."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the interface of sentence-transformers
        """Add `sentence_embedding` (B, D) to the features of a batch."""
        states_BTD = features["token_embeddings"]
        features["sentence_embedding"] = super().forward(states_BTD, self.pool_mask(features))
        return features
