"""Linear projection of pooled vectors to another size, before they are normalised."""

import torch
from torch import nn

INIT_SEED = 0  # one start for every run: merging averages heads that began at the same point


def build_projection(hidden_size: int, size: int) -> nn.Linear:
    """Randomly initialised map from the hidden size, without bias; the same in every process.

    Source: Gemini Embedding, Lee et al. 2025, arXiv:2503.07891, section 2.1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(INIT_SEED)
        return nn.Linear(hidden_size, size, bias=False)
