"""Removing blocks of a decoder: distances between their states, four rules, and the surgery.

State x_0 is the input of block 0 and x_{i+1} the output of block i, before the final norm.

Shape letters: B = texts, T = tokens, M = measured tokens, D = hidden size, L = blocks.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from model.encoder.blocks import named_blocks
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import LayerPooling
from model.encoder.tokenization import TokenizedText, collate, token_budget_batches

PER_LAYER_KEYS = (
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "no_rope_layers",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
    "intermediate_size",
    "activation_sparsity_pattern",
)
"""Config lists with one entry per block; some are plain numbers in other types of decoder."""
LAYER_INDEX_KEYS = (
    "mlp_only_layers",
    "moe_layers",
    "attn_layer_indices",
    "local_layer_ids",
    "ple_layer_ids",
    "rope_scaling_layers",
)
"""Config lists of block numbers."""
FIRST_BLOCKS_KEYS = ("first_k_dense_replace", "num_dense_layers")
"""Config numbers of first blocks that are of another kind than the rest."""


@dataclass(frozen=True)
class Distances:
    """How far apart the states around blocks are, averaged over tokens, in float64."""

    influence: list[float]
    """Per block i: 1 - mean cos(x_i, x_{i+1}) (ShortGPT, arXiv:2403.03853)."""
    angles: list[float]
    """Per first block l of a run of n: mean arccos(cos(x_l, x_{l+n})) / pi (Gromov et al.,
    arXiv:2403.17887)."""


def blocks_to_remove(num_layers: int, fraction: float) -> int:
    """Number of blocks nearest to the fraction, halves up; one block always stays."""
    return min(math.floor(fraction * num_layers + 0.5), num_layers - 1)


@torch.inference_mode()
def measure_distances(
    encoder: Encoder,
    items: Sequence[TokenizedText],
    *,
    run_length: int,
    tokens: Literal["all", "last"],
    batch_tokens: int,
) -> Distances:
    """Both distances of every block, from one pass over calibration texts.

    Args:
        encoder: Measured as it is, so after its causal mask was removed if it was.
        items: Calibration texts.
        run_length: Blocks n of a run, for `angles`.
        tokens: `all` takes every token, right where all are pooled; `last` the last one of a text,
            as Gromov et al. do for causal language models.
        batch_tokens: Tokens per forward pass, padding included.

    Raises:
        ValueError: There is no text to measure.
    """
    if not items:
        raise ValueError("no calibration texts: the documents of ingest are empty")
    influence_sums: list[Tensor] = []
    angle_sums: list[Tensor] = []
    count = 0
    lengths = [len(item.ids) for item in items]
    for batch in token_budget_batches(lengths, batch_tokens, is_packed=False):
        chosen = [items[position] for position in batch]
        states = _block_states(encoder, chosen, tokens)
        influence_sums.append(torch.stack([(1.0 - cos_M).sum() for cos_M in _cosines(states, 1)]))
        angle_sums.append(
            torch.stack([cos_M.arccos().sum() / math.pi for cos_M in _cosines(states, run_length)])
        )
        count += states[0].shape[0]
    influence_L = torch.stack(influence_sums).sum(dim=0) / count
    angle_L = torch.stack(angle_sums).sum(dim=0) / count
    return Distances(influence_L.tolist(), angle_L.tolist())


def choose_blocks(
    method: Literal["block_influence", "angular_distance", "deepest", "last"],
    distances: Distances,
    count: int,
) -> list[int]:
    """Numbers of the `count` blocks to remove, ascending.

    Args:
        method: `block_influence`, the blocks that turn the states least; `angular_distance`, the
            run of blocks with the least angle across it; `deepest`, the last but the final one
            (Gromov et al. 2024, arXiv:2403.17887); `last`, the last and the final one (L3Prune,
            arXiv:2410.14578).
        distances: Measured with run_length = count.
        count: Blocks to remove.

    Raises:
        ValueError: No block would stay.
    """
    num_layers = len(distances.influence)
    if not 0 <= count < num_layers:
        raise ValueError(f"cannot remove {count} of {num_layers} blocks: at least one must stay")
    if method == "deepest":
        return list(range(num_layers - 1 - count, num_layers - 1))
    if method == "last":
        return list(range(num_layers - count, num_layers))
    if method == "block_influence":
        ranked = sorted(range(num_layers), key=lambda block: distances.influence[block])
        return sorted(ranked[:count])
    first = min(range(len(distances.angles)), key=lambda block: distances.angles[block])
    return list(range(first, first + count))


def remove_blocks(decoder: PreTrainedModel, removed: Sequence[int]) -> None:
    """Take blocks out of a decoder, in place, so that it saves and loads as a smaller model.

    The blocks that stay are renumbered (`layer_idx`), and the config follows: `num_hidden_layers`
    and every list with an entry per block. transformers picks masks by these, not by the weights.

    Raises:
        ValueError: The decoder has no list of blocks as long as its config says, or the config
            cannot say which blocks stay.
    """
    if getattr(decoder.config, "is_heterogeneous", False) and removed:
        raise ValueError(
            f"the blocks of {type(decoder).__name__} have a config each (per_layer_config), which "
            "pruning does not cut: set prune.fraction to 0"
        )
    if removed:
        _refuse_unknown_lists(decoder.config)
    name, blocks = named_blocks(decoder)
    kept = [number for number in range(len(blocks)) if number not in set(removed)]
    for new_number, number in enumerate(kept):
        for module in blocks[number].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = new_number  # pyright: ignore[reportArgumentType]  # a plain int
    decoder.set_submodule(name, nn.ModuleList([blocks[number] for number in kept]))
    _renumber(decoder.config, kept)
    _require_same_blocks(decoder)


def _refuse_unknown_lists(config: PreTrainedConfig) -> None:
    """Refuse a config with a list about blocks that `_renumber` would leave as it is.

    Left alone it would still be read, for other blocks than it speaks of.
    """
    known = {*PER_LAYER_KEYS, *LAYER_INDEX_KEYS}
    strange = [
        key
        for key, value in config.to_dict().items()
        if "layer" in key and key not in known and not key.startswith("mtp_")
        if isinstance(value, list) and value
    ]
    if strange:
        raise ValueError(
            f"the config of {config.model_type} lists {', '.join(strange)}, of which pruning does "
            "not know what they say about blocks: set prune.fraction to 0"
        )


def _renumber(config: PreTrainedConfig, kept: Sequence[int]) -> None:
    """Let a config say which blocks there are when those of the numbers `kept` stay."""
    count = config.num_hidden_layers
    for key in PER_LAYER_KEYS:
        own_name = config.attribute_map.get(key, key)
        if isinstance(getattr(type(config), own_name, None), property):
            continue  # made of other fields
        values = getattr(config, key, None)
        # a name may be another name of a list that is cut already
        if isinstance(values, list | tuple) and len(values) == count:
            setattr(config, key, [values[number] for number in kept])
    for key in LAYER_INDEX_KEYS:
        numbers = getattr(config, key, None)
        if numbers:
            setattr(config, key, [kept.index(number) for number in numbers if number in kept])
    for key in FIRST_BLOCKS_KEYS:
        first = getattr(config, key, None)
        if first:
            setattr(config, key, sum(number < first for number in kept))
    config.num_hidden_layers = len(kept)


def _require_same_blocks(decoder: PreTrainedModel) -> None:
    """Make sure that the config alone gives these blocks: it counts them in fields of any name.

    Raises:
        ValueError: It gives others, which would be loaded with random numbers.
    """
    with torch.device("meta"):
        made = AutoModel.from_config(copy.deepcopy(decoder.config))
    shapes, expected = (
        {name: weight.shape for name, weight in each.named_parameters()} for each in (decoder, made)
    )
    strange = sorted(name for name, _ in shapes.items() ^ expected.items())
    if strange:
        raise ValueError(
            f"without the removed blocks the config of {type(decoder).__name__} describes another "
            f"decoder ({len(strange)} tensors differ, {strange[0]} the first): it counts blocks in "
            "a field that pruning does not know, set prune.fraction to 0"
        )


def prune_encoder(encoder: Encoder, removed: Sequence[int]) -> None:
    """Take blocks out of the decoder of an encoder, and their vectors out of its pooling."""
    kept = [number for number in range(count_blocks(encoder.backbone)) if number not in removed]
    remove_blocks(encoder.backbone, removed)
    if isinstance(encoder.pooling, LayerPooling):
        encoder.pooling.keep_layers(kept)


def count_blocks(decoder: PreTrainedModel) -> int:
    """Number of blocks of a decoder."""
    return len(named_blocks(decoder)[1])


def _block_states(
    encoder: Encoder, items: Sequence[TokenizedText], tokens: Literal["all", "last"]
) -> list[Tensor]:
    """States x_0 ... x_L of the measured tokens, each (M, D), float64."""
    ids_BT, mask_BT, pool_BT = collate(
        items, pad_id=encoder.pad_id, pool_prompt=True, device=encoder.device
    )
    with _recorded_states(encoder.backbone) as recorded:
        encoder(ids_BT, mask_BT, pool_BT)
    if tokens == "all":
        return [states_BTD[mask_BT.bool()].double() for states_BTD in recorded]
    row_B, last_B = torch.arange(len(items)), mask_BT.sum(dim=1) - 1
    return [states_BTD[row_B, last_B].double() for states_BTD in recorded]


@contextmanager
def _recorded_states(decoder: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Fill the yielded list with the input of block 0 and the output of every block.

    `output_hidden_states` would not do: its last entry is the output of the final norm.
    """
    recorded: list[Tensor] = []

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded.append(args[0] if args else kwargs["hidden_states"])

    def keep_output(_: nn.Module, __: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        recorded.append(output[0] if isinstance(output, tuple) else output)

    blocks = named_blocks(decoder)[1]
    with ExitStack() as stack:
        stack.enter_context(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        for block in blocks:
            stack.enter_context(block.register_forward_hook(keep_output))
        yield recorded


def _cosines(states: Sequence[Tensor], run_length: int) -> Iterator[Tensor]:
    """Cosine per token of x_l and x_{l + run_length}, for each l, in [-1, 1]."""
    for before_MD, after_MD in zip(
        states[: len(states) - run_length], states[run_length:], strict=True
    ):
        yield F.cosine_similarity(before_MD, after_MD, dim=-1).clamp(-1.0, 1.0)
