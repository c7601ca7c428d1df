"""Multi-layer pooling: trained queries look up the states of all layers, then their mean is taken.

The arithmetic follows the published code of Tang and Yang (arXiv:2409.02727,
MultiLayersTrainablePooling.py): a learned vector per layer, normalised inputs, residuals and a
gated feed-forward layer. Latents are the queries and layers the keys and values; in latent
attention the tokens are the queries, so neither block can stand in for the other.

This file is copied, with `pooling_block.py`, into each published folder whose pooling is
`multilayer`; sentence-transformers imports it from there.

Shape letters: B = texts, T = tokens, D = hidden size, L = layers, R = latents.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .pooling_block import PoolingBlock, PublishedBlock, last_token, same_start, token_mean  # noqa: TID252 - published, they lie side by side in no package of ours


class MultilayerPooling(PoolingBlock):
    """Cross-attention of trained vectors to one state per layer, a GEGLU layer, then the mean."""

    def __init__(  # noqa: PLR0913 - the sizes of the block
        self,
        *,
        hidden_size: int,
        num_layers: int,
        tokens: Literal["mean", "last"],
        num_latents: int,
        num_heads: int,
        head_dim: int,
        expansion: int,
    ) -> None:
        """Build the block; the weights are the same in every process.

        Args:
            hidden_size: Size of the decoder's states and of the latents.
            num_layers: Blocks of the decoder, L.
            tokens: State of a layer: the mean of the text's tokens, as for bidirectional
                attention, or that of its last token, as for causal attention.
            num_latents: Length of the latent array, 768 in the paper.
            num_heads: Attention heads, 32 there.
            head_dim: Size of a head, 2048 there; small decoders take less.
            expansion: Width of the feed-forward layer over the hidden size, 4 there.
        """
        super().__init__()
        self.tokens: Literal["mean", "last"] = tokens
        with same_start():
            self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
            self.layers = nn.Parameter(torch.randn(num_layers, hidden_size))
            self.layer_norm = nn.LayerNorm(hidden_size)
            self._add_layers(
                hidden_size=hidden_size,
                num_heads=num_heads,
                head_dim=head_dim,
                expansion=expansion,
            )

    def pool_tokens(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """State of each text in one layer, (B, D).

        Args:
            states_BTD: Hidden states of that layer.
            pool_mask_BT: 1 where a token counts; every row holds at least one.
        """
        pool = last_token if self.tokens == "last" else token_mean
        return pool(states_BTD, pool_mask_BT)

    def forward(self, layer_BLD: Tensor) -> Tensor:
        """Vectors (B, D) of the states of every layer, the first block's output first."""
        layer_BLD = self.layer_norm(layer_BLD + self.layers)
        found_BRD = self._attend(self.latent_norm(self.latents), layer_BLD)
        return self._feed(found_BRD + self.latents).mean(dim=1)

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Forget the vectors of all other layers: their blocks were taken out of the decoder."""
        self.layers = nn.Parameter(self.layers.detach()[list(kept)].clone())

    def own_sizes(self) -> dict[str, Any]:
        """Arguments of the constructor that not every block has."""
        return {"num_layers": self.layers.shape[0], "tokens": self.tokens}


class SentenceMultilayerPooling(PublishedBlock, MultilayerPooling):
    """The same block as a module of sentence-transformers: a dict of features in and out."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the interface of sentence-transformers
        """Add `sentence_embedding` (B, D) to the features of a batch.

        Raises:
            ValueError: The decoder gave no states of its layers.
        """
        if "all_layer_embeddings" not in features:
            raise ValueError("multilayer pooling needs output_hidden_states: true in config.json")
        mask_BT = self.pool_mask(features)
        layers = [
            self.pool_tokens(states_BTD.to(self.latents.dtype), mask_BT)
            for states_BTD in features["all_layer_embeddings"][1:]  # the first is the input
        ]
        features["sentence_embedding"] = super().forward(torch.stack(layers, dim=1))
        return features
