"""Activation checkpointing: a block keeps its input alone and is computed again when needed.

A block's activations are tens of times its input, so memory falls by almost the number of blocks
that are alive at once, for one more forward pass of each. The first pass of GradCache keeps no
graph and so recomputes nothing.

Source: Chen et al. 2016, arXiv:1604.06174.
"""

from model.encoder.encoder import Encoder


def recompute_activations(encoder: Encoder) -> None:
    """Make every block of the decoder forget its activations while it trains.

    Dropout masks are those of the first computation: torch restores the random state.

    Raises:
        ValueError: transformers cannot do it for this decoder.
    """
    encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
