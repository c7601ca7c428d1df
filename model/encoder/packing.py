"""Texts laid end to end in one row: every matrix product works on real tokens alone.

Only attention has to know where a text ends. On a GPU, in half precision, one kernel is told. Else
it runs on groups of texts of similar length, each padded to the longest of its group; the padding
never leaves the attention function.

Shape letters: B = texts, T = tokens of all texts, G = texts of a group, L = its longest text,
P = rows of all groups, padding included, H = heads, K = size of a head, D = hidden size.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutput

from model.encoder.attention import reach_of
from model.encoder.tokenization import TokenizedText

PACKED = "packed_sdpa"
"""Name of the attention implementation, for `PreTrainedModel.set_attn_implementation`."""
SHORTEST_SHARE = 0.8
"""A text below this share of its group's longest opens a new group, if that one is worth it."""
WORTHWHILE_TOKENS = 256
"""A group is worth its fixed cost from this number of tokens on."""
FEWER_KEY_HEADS: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
"""Asks the kernel for key heads that several query heads share; before torch 2.12 it just did."""
LARGEST_HEAD, HEAD_STEP = 256, 8
"""Head sizes the kernel takes: multiples of the step."""


@dataclass(frozen=True)
class Group:
    """Neighbouring texts of similar length, as one padded block."""

    rows: int
    """Texts, G."""
    width: int
    """Tokens of the longest, L."""
    key_mask_G11L: Tensor | None
    """True where a key is a token; None when all texts are equally long."""
    pool_mask_GL: Tensor
    """1 where a token is pooled."""


@dataclass(frozen=True)
class PackedTexts:
    """A batch of texts in one row, longest first."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    groups: tuple[Group, ...]
    place_T: Tensor
    """Row of each token among the P rows of all groups."""
    order_B: Tensor
    """Place, among the packed texts, of each text as it was given."""
    start_B1: Tensor | None
    """Where each text begins, and the end of the last; None where no kernel reads it."""
    longest: int
    """Tokens of the longest text."""

    def pad(self, rows_T: Tensor) -> list[Tensor]:
        """Rows (T, ...) as one zero-padded block (G, L, ...) per group."""
        sizes = [group.rows * group.width for group in self.groups]
        padded_P = rows_T.new_zeros((sum(sizes), *rows_T.shape[1:]))
        blocks = padded_P.index_copy(0, self.place_T, rows_T).split(sizes)
        return [
            block.unflatten(0, (group.rows, group.width))
            for block, group in zip(blocks, self.groups, strict=True)
        ]

    def unpad(self, blocks: Sequence[Tensor]) -> Tensor:
        """The inverse of `pad`."""
        return _Rows.apply(torch.cat([block.flatten(0, 1) for block in blocks]), self.place_T)

    def pool(self, states_1TD: Tensor, pooling: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Vectors (B, D) of the texts, in the order they were given."""
        blocks = zip(self.pad(states_1TD[0]), self.groups, strict=True)
        return torch.cat([pooling(block, group.pool_mask_GL) for block, group in blocks])[
            self.order_B
        ]


class _Rows(torch.autograd.Function):
    """Distinct rows of a matrix; torch's own gradient adds row by row, which a copy need not."""

    @staticmethod
    def forward(ctx: Any, rows_P: Tensor, place_T: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.save_for_backward(place_T)
        ctx.size = rows_P.shape
        return rows_P.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (place_T,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.size).index_copy_(0, place_T, gradients[0]), None


def pack(
    items: Sequence[TokenizedText], *, pool_prompt: bool, device: torch.device | str
) -> PackedTexts:
    """Lay texts end to end, longest first; see `TokenizedText.first_pooled`."""
    order = sorted(range(len(items)), key=lambda position: -len(items[position].ids))
    texts = [items[position] for position in order]
    lengths = [len(text.ids) for text in texts]
    groups: list[Group] = []
    places: list[Tensor] = []
    start, padded = 0, 0
    for end in _group_ends(lengths):
        length_G = torch.tensor(lengths[start:end])
        width = lengths[start]
        position_L = torch.arange(width)
        is_token_GL = position_L < length_G[:, None]
        first_G = torch.tensor(
            [text.first_pooled(pool_prompt=pool_prompt) for text in texts[start:end]]
        )
        key_mask_G11L = None if is_token_GL.all() else is_token_GL[:, None, None]
        groups.append(
            Group(
                rows=end - start,
                width=width,
                key_mask_G11L=None if key_mask_G11L is None else _sent(key_mask_G11L, device),
                pool_mask_GL=_sent((is_token_GL & (position_L >= first_G[:, None])).long(), device),
            )
        )
        places.append(padded + is_token_GL.flatten().nonzero()[:, 0])
        padded += (end - start) * width
        start = end
    ids = [token for text in texts for token in text.ids]
    positions = torch.cat([torch.arange(length) for length in lengths])
    start_B1 = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return PackedTexts(
        input_ids_1T=_sent(torch.tensor([ids]), device),
        position_ids_1T=_sent(positions[None], device),
        groups=tuple(groups),
        place_T=_sent(torch.cat(places), device),
        order_B=_sent(torch.tensor(order).argsort(), device),
        start_B1=_sent(start_B1, device) if has_kernel(torch.device(device)) else None,
        longest=lengths[0],
    )


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device; the processor does not wait for what the device has yet to do."""
    return tensor.to(device, non_blocking=True)


def has_kernel(device: torch.device) -> bool:
    """Whether the device runs attention over texts of unequal length."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _group_ends(lengths: Sequence[int]) -> list[int]:
    """Where each group ends, for lengths in falling order."""
    ends, start = [], 0
    for position, length in enumerate(lengths):
        longest = lengths[start]
        is_worth_it = (position - start) * longest >= WORTHWHILE_TOKENS
        if is_worth_it and length < SHORTEST_SHARE * longest:
            ends.append(position)
            start = position
    return [*ends, len(lengths)]


def can_pack(decoder: PreTrainedModel) -> bool:
    """Whether every layer is attention, full or in a window, that transformers lets us provide."""
    config = decoder.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        decoder._supports_attention_backend
        and config._attn_implementation in {"sdpa", PACKED}
        and set(kinds) <= {"full_attention", "sliding_attention"}
        and getattr(config, "attn_logit_softcapping", None) is None
    )


def run_packed(
    decoder: PreTrainedModel, packed: PackedTexts, *, output_hidden_states: bool = False
) -> BaseModelOutput:
    """States (1, T, D) by a decoder whose attention implementation is `PACKED`.

    Args:
        decoder: Runs once over all texts.
        packed: The texts.
        output_hidden_states: Whether the states of all layers are given, beside the last.
    """
    # a mask of four axes is handed to the attention function as it is; none is ever read there
    unread_1111 = packed.input_ids_1T.new_ones((1, 1, 1, 1), dtype=torch.bool)
    return decoder(
        input_ids=packed.input_ids_1T,
        position_ids=packed.position_ids_1T,
        attention_mask=unread_1111,
        use_cache=False,
        packed_texts=packed,
        output_hidden_states=output_hidden_states,
    )


def packed_attention(  # noqa: PLR0913 - the signature transformers calls
    module: torch.nn.Module,
    query_1HTK: Tensor,
    key_1HTK: Tensor,
    value_1HTK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_texts: PackedTexts | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,  # noqa: ANN401 - whatever the architecture passes on
) -> tuple[Tensor, None]:
    """Attention within each packed text; plain SDPA for inputs that are not packed.

    A layer with a sliding window hands it over; masks that are not packed hold it already.

    Returns:
        Output (1, T, H, K) in the type of the value, and no weights.
    """
    states = (query_1HTK, key_1HTK, value_1HTK)
    if packed_texts is None:
        return sdpa_attention_forward(
            module, *states, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    reach = reach_of(module.config, sliding_window)  # pyright: ignore[reportArgumentType]  # a config
    if _suits_kernel(states, packed_texts, dropout):
        attended_1THK = _attend_by_kernel(states, packed_texts, scaling, reach)
    else:
        attended_1THK = _attend_by_groups(states, packed_texts, scaling, reach, dropout)  # pyright: ignore[reportCallIssue]  # the decorator's type is too narrow
    return attended_1THK, None


def _suits_kernel(states: Sequence[Tensor], packed_texts: PackedTexts, dropout: float) -> bool:
    heads = {state.shape[-1] for state in states}
    head = max(heads)
    return (
        packed_texts.start_B1 is not None
        and states[2].dtype in {torch.bfloat16, torch.float16}
        and len(heads) == 1
        and head <= LARGEST_HEAD
        and head % HEAD_STEP == 0
        and dropout == 0
    )


def _attend_by_kernel(
    states: Sequence[Tensor],
    packed_texts: PackedTexts,
    scaling: float | None,
    reach: tuple[int, int],
) -> Tensor:
    """Output (1, T, H, K) of the kernel that is told where each text begins."""
    dtype = states[2].dtype
    query_THK, key_THK, value_THK = (state[0].transpose(0, 1).to(dtype) for state in states)
    attended_THK = varlen_attn(
        query_THK,
        key_THK,
        value_THK,
        packed_texts.start_B1,  # pyright: ignore[reportArgumentType]  # there is one
        packed_texts.start_B1,
        packed_texts.longest,
        packed_texts.longest,
        scale=scaling,
        window_size=reach,
        **FEWER_KEY_HEADS,
    )
    return attended_THK[None]  # pyright: ignore[reportReturnType, reportArgumentType, reportCallIssue]  # nothing else was asked for


@torch.compiler.disable  # it would be compiled anew for every set of lengths
def _attend_by_groups(
    states: Sequence[Tensor],
    packed_texts: PackedTexts,
    scaling: float | None,
    reach: tuple[int, int],
    dropout: float,
) -> Tensor:
    """Output (1, T, H, K), group by group.

    On a CPU it works in float32: torch 2.13 runs the backward pass of its bfloat16 kernel there
    three times slower (64 tokens, head size 48: 65 against 18 ms).
    """
    query_1HTK, key_1HTK, value_1HTK = states
    dtype = value_1HTK.dtype
    on_cpu = value_1HTK.device.type == "cpu"
    blocks = [
        packed_texts.pad(state[0].transpose(0, 1).to(torch.float32 if on_cpu else dtype))
        for state in states
    ]
    outputs = []
    with torch.autocast(value_1HTK.device.type, enabled=False):
        for group, *parts in zip(packed_texts.groups, *blocks, strict=True):
            mask, looks_back = _mask(group, reach)
            attended_GHLK = F.scaled_dot_product_attention(
                *(block_GLHK.transpose(1, 2) for block_GLHK in parts),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=looks_back,
                scale=scaling,
                enable_gqa=query_1HTK.shape[1] != key_1HTK.shape[1],
            )
            outputs.append(attended_GHLK.transpose(1, 2))
    return packed_texts.unpad(outputs).unsqueeze(0).to(dtype)


def _mask(group: Group, reach: tuple[int, int]) -> tuple[Tensor | None, bool]:
    """Mask of a group, if it needs one, and whether SDPA's own causal attention is meant instead.

    Rows beyond a text are zeros: right of every token, so causal attention needs no mask.
    """
    before, after = reach
    if not 0 <= before < group.width - 1:
        return (None, True) if after == 0 else (group.key_mask_G11L, False)
    position_L = torch.arange(group.width, device=group.pool_mask_GL.device)
    ahead_LL = position_L - position_L[:, None]
    is_near_LL = (ahead_LL >= -before) & (ahead_LL <= after)
    if group.key_mask_G11L is None or after == 0:
        return is_near_LL, False
    # a row beyond a text sees itself: with no key at all its gradients would not be numbers
    return is_near_LL & (group.key_mask_G11L | (ahead_LL == 0)), False


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
