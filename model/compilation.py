"""Blocks of a decoder compiled: fewer kernels, and fewer activations kept for the backward pass.

Norms, rotary positions, gates and residual sums of a block each read and write all its states; as
one kernel they do so once. All blocks share what was compiled for the first, for any number of
tokens.
"""

from transformers import PreTrainedModel


def compile_blocks(decoder: PreTrainedModel) -> None:
    """Have torch.compile replace every block when it is first run, in place.

    Names of weights stay as they are. Texts of many lengths should run packed, with the attention
    kernel of a GPU: other ways compile anew for new shapes.

    Args:
        decoder: With a list of blocks as `layers`, as the backbone of an encoder has.
    """
    for block in decoder.layers:  # pyright: ignore[reportGeneralTypeIssues]  # a list of blocks
        if block._compiled_call_impl is None:
            block.compile(dynamic=True)
