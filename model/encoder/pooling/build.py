"""From pooling settings to the pooling module."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from model.encoder.pooling.last import LastPooling
from model.encoder.pooling.latent import LatentPooling
from model.encoder.pooling.mean import MeanPooling
from model.encoder.pooling.multilayer import MultilayerPooling
from model.encoder.pooling.weighted_mean import WeightedMeanPooling

FIRST_KEYS = ("kind", "pool_prompt", "latent")
"""Keys that are written always."""


@dataclass(frozen=True, kw_only=True)
class LatentSize:
    """Sizes of the block of `latent` or `multilayer` pooling."""

    num_latents: int
    num_heads: int
    head_dim: int
    expansion: int
    """Width of the feed-forward layer over the hidden size."""


@dataclass(frozen=True, kw_only=True)
class PoolingSettings:
    """How the token states of one text become one vector."""

    kind: Literal["mean", "weighted_mean", "last", "latent", "multilayer"]
    pool_prompt: bool = True
    """Whether the tokens of the instruction take part."""
    latent: LatentSize | None = None
    """Needed by `latent` and `multilayer`, unused by the others."""
    layer_tokens: Literal["mean", "last"] | None = None
    """Needed by `multilayer`: the tokens whose states stand for a layer."""
    projection: int | None = None
    """Size of the vectors after a linear projection; None keeps the hidden size."""

    @property
    def ends_with_eos(self) -> bool:
        """Whether the last token, EOS, is all that is pooled."""
        return self.kind == "last" or (self.kind == "multilayer" and self.layer_tokens == "last")

    def to_json(self) -> dict[str, Any]:
        """Settings as a JSON mapping without what is off; `from_json` is the inverse."""
        content = asdict(self)
        return {key: content[key] for key in content if key in FIRST_KEYS or content[key]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PoolingSettings":
        """Settings from the mapping `to_json` gave."""
        latent = content["latent"]
        size = None if latent is None else LatentSize(**latent)
        values: dict[str, Any] = content | {"latent": size}
        return cls(**values)


def build_pooling(settings: PoolingSettings, *, hidden_size: int, num_layers: int) -> nn.Module:
    """Pooling module that maps states (B, T, D) and a mask (B, T) to vectors (B, D).

    `multilayer` maps states of all layers (B, L, D) instead, from its `pool_tokens`.

    Raises:
        ValueError: The kind is unknown, or comes without its sizes.
    """
    if settings.kind == "mean":
        return MeanPooling()
    if settings.kind == "weighted_mean":
        return WeightedMeanPooling()
    if settings.kind == "last":
        return LastPooling()
    if settings.kind not in {"latent", "multilayer"}:
        raise ValueError(
            f"pooling {settings.kind!r} is unknown: use mean, weighted_mean, last, latent or "
            "multilayer"
        )
    if settings.latent is None:
        raise ValueError(
            f"{settings.kind} pooling needs num_latents, num_heads, head_dim and expansion"
        )
    if settings.kind == "latent":
        return LatentPooling(hidden_size, **asdict(settings.latent))
    if settings.layer_tokens is None:
        raise ValueError("multilayer pooling needs layer_tokens: mean or last")
    return MultilayerPooling(
        hidden_size=hidden_size,
        num_layers=num_layers,
        tokens=settings.layer_tokens,
        **asdict(settings.latent),
    )
