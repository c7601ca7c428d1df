"""The form in which an encoder is trained: whole, through adapters or sharded."""

import contextlib
from collections.abc import Iterator

from model.encoder.compilation import compile_blocks
from model.encoder.encoder import Encoder
from model.encoder.precision import decoder_autocast
from model.encoder.tokenization import TokenizedText
from model.training.devices.activations import recompute_activations
from model.training.devices.lora import Adapters
from model.training.devices.sharding import sharded_copy, whole_tensors
from model.training.devices.team import Team
from model.training.settings import TrainSettings

FIRST_LENGTH = 64
LONG_SUM = 4096
"""Numbers that the compiler adds up in one chain on a processor."""


@contextlib.contextmanager
def wrapped_for_training(
    encoder: Encoder, settings: TrainSettings, team: Team
) -> Iterator[Encoder]:
    """The encoder as it is trained; afterwards `encoder` is plain again.

    It holds the result then, on the leading process at least: where weights were sharded, the
    others keep what they began with.

    Raises:
        ValueError: The decoder cannot be trained that way.
    """
    adapters = Adapters(encoder, settings.lora, settings.seed) if settings.lora else None
    if settings.activation_checkpointing:
        recompute_activations(encoder)
    if team.shares_weights:
        trained = sharded_copy(encoder, team)
        device = encoder.device
        encoder.to("cpu")
        yield _compiled(trained, settings)
        whole = whole_tensors(trained.state_dict(), team)
        encoder.load_state_dict(encoder.state_dict() | whole)
        encoder.to(device)
    else:
        yield _compiled(encoder, settings)
    encoder.eval()
    if adapters is not None:
        adapters.merge()


def _compiled(encoder: Encoder, settings: TrainSettings) -> Encoder:
    """The encoder itself, its blocks compiled if that is wanted."""
    if settings.compile_blocks:
        is_new = compile_blocks(encoder.backbone)
        if is_new and encoder.device.type == "cpu":
            _take_first_passes(encoder, settings)
    return encoder


def first_text(encoder: Encoder, settings: TrainSettings) -> TokenizedText:
    """A text of padding alone: what compiled blocks are shown before the first step."""
    length = min(FIRST_LENGTH, settings.max_length_tokens)
    return TokenizedText([encoder.pad_id] * length, 0)


def _take_first_passes(encoder: Encoder, settings: TrainSettings) -> None:
    """Have blocks compiled by batches of the same sizes in every process.

    The compiler builds other kernels where a sum has more than `LONG_SUM` numbers, and looks at the
    first sizes it meets. A training that goes on after a kill meets others, and would add up in
    another order.
    """
    most = settings.micro_batch_tokens
    heads = encoder.backbone.config.num_attention_heads
    # one size in each range: a norm of heads adds up over tokens and heads, others over tokens
    bounds = [LONG_SUM >> halvings for halvings in range(heads.bit_length())]
    text = first_text(encoder, settings)
    for tokens in sorted({min(size, most) for size in (2 * LONG_SUM, *bounds)}):
        items = [text] * max(1, tokens // len(text.ids))
        with decoder_autocast(encoder.device, settings.precision):
            vectors = encoder.train().embed(items)
        vectors.square().sum().backward()
        encoder.zero_grad(set_to_none=True)
