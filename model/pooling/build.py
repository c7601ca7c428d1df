"""From pooling settings to the pooling module."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from model.pooling.last import LastPooling
from model.pooling.latent import LatentPooling
from model.pooling.mean import MeanPooling
from model.pooling.weighted_mean import WeightedMeanPooling


@dataclass(frozen=True, kw_only=True)
class LatentSize:
    """Sizes of the latent attention block."""

    num_latents: int
    num_heads: int
    head_dim: int
    expansion: int
    """Width of the feed-forward layer over the hidden size."""


@dataclass(frozen=True, kw_only=True)
class PoolingSettings:
    """How the token states of one text become one vector."""

    kind: Literal["mean", "weighted_mean", "last", "latent"]
    pool_prompt: bool = True
    """Whether the tokens of the instruction take part."""
    latent: LatentSize | None = None
    """Needed by `latent`, unused by the others."""

    def to_json(self) -> dict[str, Any]:
        """Settings as a JSON mapping; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PoolingSettings":
        """Settings from the mapping `to_json` gave."""
        latent = content["latent"]
        size = None if latent is None else LatentSize(**latent)
        return cls(kind=content["kind"], pool_prompt=content["pool_prompt"], latent=size)


def build_pooling(settings: PoolingSettings, hidden_size: int) -> nn.Module:
    """Pooling module that maps states (B, T, D) and a mask (B, T) to vectors (B, D).

    Raises:
        ValueError: The kind is unknown, or `latent` comes without its sizes.
    """
    if settings.kind == "mean":
        return MeanPooling()
    if settings.kind == "weighted_mean":
        return WeightedMeanPooling()
    if settings.kind == "last":
        return LastPooling()
    if settings.kind != "latent":
        raise ValueError(
            f"pooling {settings.kind!r} is unknown: use mean, weighted_mean, last or latent"
        )
    if settings.latent is None:
        raise ValueError("latent pooling needs num_latents, num_heads, head_dim and expansion")
    return LatentPooling(hidden_size, **asdict(settings.latent))
