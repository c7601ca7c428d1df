"""Which known tokens stand in the company that a new one stands in.

After OFA (Liu et al. 2023, arXiv 2311.08849), which begins a new row with those of the known tokens
that are similar to it by word vectors from outside. Here the vectors are of the corpora themselves:
how much more often than by chance a token stands near each of the frequent ones (positive pointwise
mutual information), factorised.

Shape letters: R = tokens with a vector, C = tokens that make company, S = numbers of a vector.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.backbone.vocabulary.extend import Mixture
from model.backbone.vocabulary.rewriting import batches, ids_of

COMPANY = 1000
"""The most frequent tokens, which company is made of."""
REACH = 5
"""Tokens before and after one that stand near it."""
SIZE = 100
NEIGHBOURS = 10
TEMPERATURE = 0.1
"""As OFA takes the two."""


def similar_tokens(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    means: Sequence[Mixture],
    *,
    min_count: int,
) -> list[Mixture]:
    """For each new token the known ones of the most similar company, by softmax of their cosines.

    A token that stands in no company, and any where no known token is frequent enough, keeps the
    mean of its pieces.

    Args:
        tokenizer: The extended one; its last tokens are the new ones.
        texts: Of the corpora.
        means: Of each new token the mean of its pieces.
        min_count: Least occurrences of a known token that is asked.
    """
    last = max(tokenizer.get_vocab().values()) + 1
    first_new = last - len(means)
    cuts = [ids for batch in batches(texts) for ids in ids_of(tokenizer, batch)]
    counts = np.bincount(np.concatenate(cuts), minlength=last)
    known = np.flatnonzero(counts[:first_new] >= min_count)
    if not len(known):
        return list(means)
    rows = np.concatenate([known, np.arange(first_new, last)])
    vectors_RS = _factorised(_near(cuts, counts, rows))
    known_RS, new_RS = vectors_RS[: len(known)], vectors_RS[len(known) :]
    return [
        _mixture(known_RS @ vector_S, known) if vector_S.any() else mean
        for vector_S, mean in zip(new_RS, means, strict=True)
    ]


def _mixture(cosines_R: Tensor, known: np.ndarray) -> Mixture:
    best, places = cosines_R.topk(min(NEIGHBOURS, len(known)))
    return known[places.numpy()].tolist(), (best / TEMPERATURE).softmax(0).tolist()


def _near(cuts: Sequence[np.ndarray], counts: np.ndarray, rows: np.ndarray) -> Tensor:
    """How often each of these tokens stands near each of the frequent ones, shape [R, C]."""
    company = np.argsort(-counts, kind="stable")[:COMPANY]
    row_of, column_of = (np.full(len(counts), -1) for _ in range(2))
    row_of[rows] = np.arange(len(rows))
    column_of[company] = np.arange(len(company))
    near_RC = np.zeros((len(rows), len(company)), dtype=np.float32)
    for ids in cuts:
        its_rows, its_columns = row_of[ids], column_of[ids]
        for distance in range(1, min(REACH, len(ids) - 1) + 1):
            for here, there in (
                (its_rows[:-distance], its_columns[distance:]),
                (its_rows[distance:], its_columns[:-distance]),
            ):
                is_counted = (here >= 0) & (there >= 0)
                np.add.at(near_RC, (here[is_counted], there[is_counted]), 1)
    return torch.from_numpy(near_RC)


def _factorised(near_RC: Tensor) -> Tensor:
    """Unit vectors of the information that the company gives; zeros where there is none."""
    by_row, by_column = near_RC.sum(1, keepdim=True), near_RC.sum(0)
    by_chance_RC = (by_row * by_column / near_RC.sum().clamp(min=1)).clamp(min=1e-9)
    information_RC = (near_RC / by_chance_RC).clamp(min=1).log()
    _, axes_CS = torch.linalg.eigh(information_RC.T @ information_RC)
    vectors_RS = information_RC @ axes_CS[:, -SIZE:]
    return torch.nn.functional.normalize(vectors_RS, dim=1)
