"""What poolings with weights share: cross-attention, a gated layer, and their form when published.

This file is copied, beside that of the pooling, into each published folder with such a pooling and
needs torch and safetensors alone; sentence-transformers imports it from there.

Shape letters: B = texts, T = tokens, D = hidden size, X = states that ask, Y = states that are
looked up, H = heads, K = head size, I = H x K, W = width of the feed-forward layer.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

INIT_SEED = 0  # one start for every run: merging averages heads that began at the same point


@contextmanager
def same_start() -> Iterator[None]:
    """Draw the same weights in every process, and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(INIT_SEED)
        yield


def token_mean(states_BTD: Tensor, weight_BT: Tensor) -> Tensor:
    """Mean (B, D) of the token states, each with its weight; every row holds one above 0."""
    weight_BT1 = weight_BT.unsqueeze(-1).to(states_BTD.dtype)
    return (states_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)


def last_token(states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
    """State (B, D) at the last position whose mask is 1, whichever side is padded."""
    position_T = torch.arange(states_BTD.shape[1], device=states_BTD.device)
    last_B = (pool_mask_BT.to(torch.bool) * position_T).argmax(dim=1)
    row_B = torch.arange(states_BTD.shape[0], device=states_BTD.device)
    return states_BTD[row_B, last_B]


class PoolingBlock(nn.Module):
    """Latents, cross-attention and a GEGLU layer; what asks what is up to the pooling."""

    num_heads: int
    latents: nn.Parameter

    def _add_layers(
        self, *, hidden_size: int, num_heads: int, head_dim: int, expansion: int
    ) -> None:
        """Draw all that follows the first norm."""
        inner, wide = num_heads * head_dim, hidden_size * expansion
        self.num_heads = num_heads
        self.latent_norm = nn.LayerNorm(hidden_size)
        self.to_query = nn.Linear(hidden_size, inner, bias=False)
        self.to_key_value = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)
        self.feed_norm = nn.LayerNorm(hidden_size)
        self.feed_in = nn.Linear(hidden_size, 2 * wide)
        self.feed_out = nn.Linear(wide, hidden_size)

    def _attend(self, asking_XD: Tensor, looked_up_YD: Tensor) -> Tensor:
        """What each asking state finds, (B, X, D); one of both sides may lack the axis B."""
        query_HXK = self._heads(self.to_query(asking_XD))
        key_HYK, value_HYK = map(self._heads, self.to_key_value(looked_up_YD).chunk(2, dim=-1))
        [batch] = asking_XD.shape[:-2] or looked_up_YD.shape[:-2]
        query_BHXK, key_BHYK, value_BHYK = (
            part.expand(batch, -1, -1, -1) for part in (query_HXK, key_HYK, value_HYK)
        )
        out_BHXK = F.scaled_dot_product_attention(query_BHXK, key_BHYK, value_BHYK)
        return self.to_out(out_BHXK.transpose(1, 2).flatten(2))

    def _heads(self, states_XI: Tensor) -> Tensor:
        return states_XI.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def _feed(self, states_BXD: Tensor) -> Tensor:
        """The gated feed-forward layer and its residual."""
        value_BXW, gate_BXW = self.feed_in(self.feed_norm(states_BXD)).chunk(2, dim=-1)
        return self.feed_out(value_BXW * F.gelu(gate_BXW)) + states_BXD

    def own_sizes(self) -> dict[str, Any]:
        """Arguments of the constructor that not every block has."""
        return {}

    def sizes(self) -> dict[str, Any]:
        """Arguments of the constructor that builds a block of this shape."""
        hidden_size, inner = self.to_query.in_features, self.to_query.out_features
        return {
            "hidden_size": hidden_size,
            **self.own_sizes(),
            "num_latents": self.latents.shape[0],
            "num_heads": self.num_heads,
            "head_dim": inner // self.num_heads,
            "expansion": self.feed_out.in_features // hidden_size,
        }


def save_block(block: PoolingBlock, folder: Path, *, include_prompt: bool) -> None:
    """Write sizes and weights of a block, as `PublishedBlock.load` reads them."""
    config = block.sizes() | {"include_prompt": include_prompt}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(block.state_dict(), folder / "model.safetensors")


class PublishedBlock(PoolingBlock):
    """A block as a module of sentence-transformers: to be mixed into its pooling."""

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

    def pool_mask(self, features: dict[str, Any]) -> Tensor:
        """1 where a token is pooled, (B, T): in a prompt too that left no room for its text."""
        mask_BT: Tensor = features["attention_mask"]
        prompt_tokens = int(features.get("prompt_length", 0))
        if not prompt_tokens or self.include_prompt:
            return mask_BT
        text_BT = mask_BT.clone()
        text_BT[:, :prompt_tokens] = 0
        return torch.where(text_BT.any(dim=1, keepdim=True), text_BT, mask_BT)
