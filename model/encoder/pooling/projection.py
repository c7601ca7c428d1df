"""Linear projection of pooled vectors to another size, before they are normalised."""

from torch import nn

from model.encoder.pooling.pooling_block import same_start


def build_projection(hidden_size: int, size: int) -> nn.Linear:
    """Randomly initialised map from the hidden size, without bias; the same in every process.

    Source: Gemini Embedding, Lee et al. 2025, arXiv:2503.07891, section 2.1.
    """
    with same_start():
        return nn.Linear(hidden_size, size, bias=False)
