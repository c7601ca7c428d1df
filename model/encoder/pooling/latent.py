"""Latent attention pooling: every token looks up a trained array, then the mean is taken.

The arithmetic follows the published code of NV-Embed (arXiv:2405.17428, modeling_nvembed.py), which
differs from the text of the paper: normalised inputs, residuals and a gated feed-forward layer.

This file is copied into each published folder whose pooling is `latent` and needs torch and
safetensors alone; sentence-transformers imports it from there.

Shape letters: B = texts, T = tokens, D = hidden size, R = latents, H = heads, K = head size,
I = H x K, W = width of the feed-forward layer.
"""

import json
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

INIT_SEED = 0  # one start for every run: merging averages heads that began at the same point


class LatentPooling(nn.Module):
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
        inner, wide = num_heads * head_dim, hidden_size * expansion
        self.num_heads = num_heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(INIT_SEED)
            self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
            self.token_norm = nn.LayerNorm(hidden_size)
            self.latent_norm = nn.LayerNorm(hidden_size)
            self.to_query = nn.Linear(hidden_size, inner, bias=False)
            self.to_key_value = nn.Linear(hidden_size, 2 * inner, bias=False)
            self.to_out = nn.Linear(inner, hidden_size, bias=False)
            self.feed_norm = nn.LayerNorm(hidden_size)
            self.feed_in = nn.Linear(hidden_size, 2 * wide)
            self.feed_out = nn.Linear(wide, hidden_size)

    def forward(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """Mean over the tokens whose mask is 1, after the block.

        Args:
            states_BTD: Last hidden states of the decoder.
            pool_mask_BT: 1 where a token counts; every row holds at least one.

        Returns:
            Vectors of shape (B, D).
        """
        states_BTD = self._attend(states_BTD) + states_BTD
        value_BTW, gate_BTW = self.feed_in(self.feed_norm(states_BTD)).chunk(2, dim=-1)
        states_BTD = self.feed_out(value_BTW * F.gelu(gate_BTW)) + states_BTD
        weight_BT1 = pool_mask_BT.unsqueeze(-1).to(states_BTD.dtype)
        return (states_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)

    def _attend(self, states_BTD: Tensor) -> Tensor:
        key_RI, value_RI = self.to_key_value(self.latent_norm(self.latents)).chunk(2, dim=-1)
        query_BHTK = self.to_query(self.token_norm(states_BTD)).unflatten(-1, (self.num_heads, -1))
        query_BHTK = query_BHTK.transpose(1, 2)
        batch = query_BHTK.shape[0]
        key_BHRK = (
            key_RI.unflatten(-1, (self.num_heads, -1)).transpose(0, 1).expand(batch, -1, -1, -1)
        )
        value_BHRK = (
            value_RI.unflatten(-1, (self.num_heads, -1)).transpose(0, 1).expand(batch, -1, -1, -1)
        )
        out_BHTK = F.scaled_dot_product_attention(query_BHTK, key_BHRK, value_BHRK)
        return self.to_out(out_BHTK.transpose(1, 2).flatten(2))


def save_block(block: LatentPooling, folder: Path, *, include_prompt: bool) -> None:
    """Write sizes and weights of a block, as `SentenceLatentPooling.load` reads them."""
    hidden_size, inner = block.to_query.in_features, block.to_query.out_features
    config = {
        "hidden_size": hidden_size,
        "num_latents": block.latents.shape[0],
        "num_heads": block.num_heads,
        "head_dim": inner // block.num_heads,
        "expansion": block.feed_out.in_features // hidden_size,
        "include_prompt": include_prompt,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(block.state_dict(), folder / "model.safetensors")


class SentenceLatentPooling(LatentPooling):
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

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the interface of sentence-transformers
        """Add `sentence_embedding` (B, D) to the features of a batch."""
        states_BTD, mask_BT = features["token_embeddings"], features["attention_mask"]
        prompt_tokens = int(features.get("prompt_length", 0))
        if prompt_tokens and not self.include_prompt:
            text_BT = mask_BT.clone()
            text_BT[:, :prompt_tokens] = 0
            # a prompt that left no room for its text is pooled itself
            mask_BT = torch.where(text_BT.any(dim=1, keepdim=True), text_BT, mask_BT)
        features["sentence_embedding"] = super().forward(states_BTD, mask_BT)
        return features
