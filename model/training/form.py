"""The form in which an encoder is trained: whole or through adapters, with or without its graph."""

import contextlib
from collections.abc import Iterator

from model.encoder import Encoder
from model.training.activations import recompute_activations
from model.training.lora import Adapters
from model.training.settings import TrainSettings


@contextlib.contextmanager
def trained_form(encoder: Encoder, settings: TrainSettings) -> Iterator[Encoder]:
    """The encoder as it is trained; afterwards `encoder` is plain again and holds the result.

    Raises:
        ValueError: The decoder cannot be trained that way.
    """
    adapters = Adapters(encoder, settings.lora, settings.seed) if settings.lora else None
    if settings.activation_checkpointing:
        recompute_activations(encoder)
    yield encoder
    encoder.eval()
    if adapters is not None:
        adapters.merge()
