"""The form in which an encoder is trained: whole, through adapters or sharded."""

import contextlib
from collections.abc import Iterator

from model.compilation import compile_blocks
from model.encoder import Encoder
from model.training.activations import recompute_activations
from model.training.lora import Adapters
from model.training.settings import TrainSettings
from model.training.sharding import sharded_copy, whole_tensors
from model.training.team import Team


@contextlib.contextmanager
def trained_form(encoder: Encoder, settings: TrainSettings, team: Team) -> Iterator[Encoder]:
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
        compile_blocks(encoder.backbone)
    return encoder
