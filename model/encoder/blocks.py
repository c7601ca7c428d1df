"""The blocks of a decoder, whatever its class calls them."""

from torch import nn
from transformers import PreTrainedModel


def named_blocks(decoder: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of blocks and its name: `layers` in most families, `h` in the oldest.

    Raises:
        ValueError: There is no list as long as the config says.
    """
    for name, module in decoder.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == decoder.config.num_hidden_layers:
            return name, module
    raise ValueError(
        f"{type(decoder).__name__} ({decoder.config.model_type}) has no list of "
        f"{decoder.config.num_hidden_layers} blocks, which training and pruning need: take another "
        "decoder"
    )
