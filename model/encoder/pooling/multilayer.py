"""Multi-layer pooling: trained queries look up the states of all layers, then their mean is taken.

The arithmetic follows the published code of Tang and Yang (arXiv:2409.02727,
MultiLayersTrainablePooling.py): a learned vector per layer, normalised inputs, residuals and a
gated feed-forward layer. Latents are the queries and layers the keys and values; in latent
attention the tokens are the queries, so neither block can stand in for the other.

This file is copied into each published folder whose pooling is `multilayer` and needs torch and
safetensors alone; sentence-transformers imports it from there.

Shape letters: B = texts, T = tokens, D = hidden size, L = layers, R = latents, H = heads,
K = head size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

INIT_SEED = 0  # one start for every run: merging averages heads that began at the same point


class MultilayerPooling(nn.Module):
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
        inner, wide = num_heads * head_dim, hidden_size * expansion
        self.num_heads = num_heads
        self.tokens: Literal["mean", "last"] = tokens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(INIT_SEED)
            self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
            self.layers = nn.Parameter(torch.randn(num_layers, hidden_size))
            self.layer_norm = nn.LayerNorm(hidden_size)
            self.latent_norm = nn.LayerNorm(hidden_size)
            self.to_query = nn.Linear(hidden_size, inner, bias=False)
            self.to_key_value = nn.Linear(hidden_size, 2 * inner, bias=False)
            self.to_out = nn.Linear(inner, hidden_size, bias=False)
            self.feed_norm = nn.LayerNorm(hidden_size)
            self.feed_in = nn.Linear(hidden_size, 2 * wide)
            self.feed_out = nn.Linear(wide, hidden_size)

    def pool_tokens(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """State of each text in one layer, (B, D).

        Args:
            states_BTD: Hidden states of that layer.
            pool_mask_BT: 1 where a token counts; every row holds at least one.
        """
        if self.tokens == "last":
            position_T = torch.arange(states_BTD.shape[1], device=states_BTD.device)
            last_B = (pool_mask_BT.to(torch.bool) * position_T).argmax(dim=1)
            row_B = torch.arange(states_BTD.shape[0], device=states_BTD.device)
            return states_BTD[row_B, last_B]
        weight_BT1 = pool_mask_BT.unsqueeze(-1).to(states_BTD.dtype)
        return (states_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)

    def forward(self, layer_BLD: Tensor) -> Tensor:
        """Vectors (B, D) of the states of every layer, the first block's output first."""
        latent_BRD = self._attend(layer_BLD + self.layers) + self.latents
        value_BRW, gate_BRW = self.feed_in(self.feed_norm(latent_BRD)).chunk(2, dim=-1)
        latent_BRD = self.feed_out(value_BRW * F.gelu(gate_BRW)) + latent_BRD
        return latent_BRD.mean(dim=1)

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Forget the vectors of all other layers: their blocks were taken out of the decoder."""
        self.layers = nn.Parameter(self.layers.detach()[list(kept)].clone())

    def _attend(self, layer_BLD: Tensor) -> Tensor:
        query_RI = self.to_query(self.latent_norm(self.latents))
        query_HRK = query_RI.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        key_BHLK, value_BHLK = (
            part_BLI.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part_BLI in self.to_key_value(self.layer_norm(layer_BLD)).chunk(2, dim=-1)
        )
        query_BHRK = query_HRK.expand(layer_BLD.shape[0], -1, -1, -1)
        out_BHRK = F.scaled_dot_product_attention(query_BHRK, key_BHLK, value_BHLK)
        return self.to_out(out_BHRK.transpose(1, 2).flatten(2))


def save_block(block: MultilayerPooling, folder: Path, *, include_prompt: bool) -> None:
    """Write sizes and weights of a block, as `SentenceMultilayerPooling.load` reads them."""
    hidden_size, inner = block.to_query.in_features, block.to_query.out_features
    config = {
        "hidden_size": hidden_size,
        "num_layers": block.layers.shape[0],
        "tokens": block.tokens,
        "num_latents": block.latents.shape[0],
        "num_heads": block.num_heads,
        "head_dim": inner // block.num_heads,
        "expansion": block.feed_out.in_features // hidden_size,
        "include_prompt": include_prompt,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(block.state_dict(), folder / "model.safetensors")


class SentenceMultilayerPooling(MultilayerPooling):
    """The same block as a module of sentence-transformers: a dict of features in and out."""

    include_prompt: bool = True

    @classmethod
    def load(cls, input_path: str) -> Self:
        """Read the block from its folder inside a published model."""
        config: dict[str, Any] = json.loads(Path(input_path, "config.json").read_text("utf-8"))
        include_prompt = config.pop("include_prompt")
        module = cls(**config)
        module.include_prompt = include_prompt
        module.load_state_dict(load_file(Path(input_path, "model.safetensors")))
        return module

    def save(self, output_path: str, *_: object, **__: object) -> None:
        """Write the block as `load` reads it."""
        save_block(self, Path(output_path), include_prompt=self.include_prompt)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the interface of sentence-transformers
        """Add `sentence_embedding` (B, D) to the features of a batch.

        Raises:
            ValueError: The decoder gave no states of its layers.
        """
        if "all_layer_embeddings" not in features:
            raise ValueError("multilayer pooling needs output_hidden_states: true in config.json")
        mask_BT: Tensor = features["attention_mask"]
        prompt_tokens = int(features.get("prompt_length", 0))
        if prompt_tokens and not self.include_prompt:
            text_BT = mask_BT.clone()
            text_BT[:, :prompt_tokens] = 0
            # a prompt that left no room for its text is pooled itself
            mask_BT = torch.where(text_BT.any(dim=1, keepdim=True), text_BT, mask_BT)
        layers = [
            self.pool_tokens(states_BTD.to(self.latents.dtype), mask_BT)
            for states_BTD in features["all_layer_embeddings"][1:]  # the first is the input
        ]
        features["sentence_embedding"] = super().forward(torch.stack(layers, dim=1))
        return features
