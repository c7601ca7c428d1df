"""The kinds of pooling, one line of a table each, and from settings to the module."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from model.encoder.pooling.last import LastPooling
from model.encoder.pooling.latent import LatentPooling, SentenceLatentPooling
from model.encoder.pooling.mean import MeanPooling
from model.encoder.pooling.multilayer import MultilayerPooling, SentenceMultilayerPooling
from model.encoder.pooling.pooling_block import PublishedBlock
from model.encoder.pooling.weighted_mean import WeightedMeanPooling

FIRST_KEYS = ("kind", "pool_prompt", "latent")
"""Keys that are written always."""


@runtime_checkable
class LayerPooling(Protocol):
    """A pooling that takes the states of all layers (B, L, D)."""

    def __call__(self, layer_BLD: Tensor) -> Tensor:
        """Vectors (B, D)."""
        ...

    def pool_tokens(self, states_BTD: Tensor, pool_mask_BT: Tensor) -> Tensor:
        """State of each text in one layer, (B, D)."""
        ...

    def keep_layers(self, kept: Sequence[int]) -> None:
        """Forget all other layers."""
        ...


@dataclass(frozen=True, kw_only=True)
class PoolingKind:
    """What is to be known of a kind of pooling."""

    module: type[nn.Module]
    """Maps states (B, T, D) and a mask (B, T) to vectors (B, D), unless it is a `LayerPooling`."""
    stock_mode: str = ""
    """Mode of the module of sentence-transformers that does the same."""
    published: type[PublishedBlock] | None = None
    """Where no mode does the same: the block as such a module, whose file goes into the folder."""
    folder: str = "1_Pooling"
    """Subfolder of a model folder."""
    pools_last: bool = False
    """Whether EOS is all that is pooled."""

    @property
    def reads_all_layers(self) -> bool:
        """Whether it takes the states of all layers instead of the last."""
        return issubclass(self.module, LayerPooling)


KINDS = {
    "mean": PoolingKind(module=MeanPooling, stock_mode="mean"),
    "weighted_mean": PoolingKind(module=WeightedMeanPooling, stock_mode="weightedmean"),
    "last": PoolingKind(module=LastPooling, stock_mode="lasttoken", pools_last=True),
    "latent": PoolingKind(
        module=LatentPooling, published=SentenceLatentPooling, folder="1_LatentPooling"
    ),
    "multilayer": PoolingKind(
        module=MultilayerPooling, published=SentenceMultilayerPooling, folder="1_MultilayerPooling"
    ),
}
"""Kinds by the names that params.yaml has for them."""


def kind_of(name: str) -> PoolingKind:
    """The kind of a name.

    Raises:
        ValueError: There is none.
    """
    if name not in KINDS:
        *names, last = KINDS
        raise ValueError(f"pooling {name!r} is unknown: use {', '.join(names)} or {last}")
    return KINDS[name]


@dataclass(frozen=True, kw_only=True)
class LatentSize:
    """Sizes of the block of a pooling with weights."""

    num_latents: int
    num_heads: int
    head_dim: int
    expansion: int
    """Width of the feed-forward layer over the hidden size."""


@dataclass(frozen=True, kw_only=True)
class PoolingSettings:
    """How the token states of one text become one vector."""

    kind: str
    """Name in `KINDS`."""
    pool_prompt: bool = True
    """Whether the tokens of the instruction take part."""
    latent: LatentSize | None = None
    """Needed by kinds with a block, unused by the others."""
    layer_tokens: Literal["mean", "last"] | None = None
    """Needed by kinds that read all layers: the tokens whose states stand for a layer."""
    projection: int | None = None
    """Size of the vectors after a linear projection; None keeps the hidden size."""

    @property
    def ends_with_eos(self) -> bool:
        """Whether the last token, EOS, is all that is pooled."""
        kind = kind_of(self.kind)
        return kind.pools_last or (kind.reads_all_layers and self.layer_tokens == "last")

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
    """Pooling module of a kind, with the weights that every process starts from.

    Raises:
        ValueError: The kind is unknown, or comes without its sizes.
    """
    kind = kind_of(settings.kind)
    if kind.published is None:
        return kind.module()
    if settings.latent is None:
        raise ValueError(
            f"{settings.kind} pooling needs num_latents, num_heads, head_dim and expansion"
        )
    sizes: dict[str, Any] = {"hidden_size": hidden_size, **asdict(settings.latent)}
    if kind.reads_all_layers:
        if settings.layer_tokens is None:
            raise ValueError(f"{settings.kind} pooling needs layer_tokens: mean or last")
        sizes |= {"num_layers": num_layers, "tokens": settings.layer_tokens}
    return kind.module(**sizes)
