"""Blocks of a decoder compiled: fewer kernels, and fewer activations kept for the backward pass.

Norms, rotary positions, gates and residual sums of a block each read and write all its states; as
one kernel they do so once. All blocks share what was compiled for the first, for any number of
tokens.
"""

from model.encoder import Encoder


def compile_blocks(encoder: Encoder) -> None:
    """Have torch.compile replace every block when it is first run, in place.

    Names of weights stay as they are. Texts should run packed, with the attention kernel of a GPU:
    other ways compile anew for new shapes.
    """
    for block in encoder.backbone.layers:  # pyright: ignore[reportGeneralTypeIssues]  # a list of blocks
        if block._compiled_call_impl is None:
            block.compile(dynamic=True)
