"""Extend the vocabulary of a decoder by tokens learnt from corpora.

A decoder that knows little of a language cuts its words into many tokens. Learning goes on where
that of its own tokenizer ended: the most frequent two neighbours within a word become one token,
then the next two, after the continued training of Purason et al. 2025 (arXiv 2512.03989). So each
new token joins two that exist, and texts that hold none of the new ones keep their ids exactly.

Shape letters: V = tokens of the vocabulary, D = hidden size.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model.backbone.vocabulary.families import (
    SPACE,
    Pair,
    grown_model,
    joins_of,
    pieces_of,
    require_family,
)
from model.backbone.vocabulary.rewriting import (
    batches,
    content_of,
    require_one_table,
    rewritten,
    set_rows,
)

Word = tuple[str, ...]
"""The tokens of a stretch of text that no new token crosses the ends of."""

Mixture = tuple[list[int], list[float]]
"""Ids of known tokens and the weight of the row of each in that of a new token."""


def learn_pairs(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, new_tokens: int, min_count: int
) -> list[Pair]:
    """The pairs of tokens that become one token each, from the most frequent.

    Args:
        tokenizer: BPE or Unigram.
        texts: Of the corpora.
        new_tokens: Most pairs.
        min_count: Least occurrences of a pair.

    Raises:
        ValueError: The tokenizer cannot be extended, or there is nothing to learn.
    """
    content = content_of(tokenizer)
    require_family(content["model"])
    words = count_words(tokenizer, texts)
    if not words:
        raise ValueError(
            "the corpora hold no text to learn tokens from: ingest some, or set "
            "backbone.vocabulary to keep"
        )
    pairs = join_pairs(
        words,
        tokenizer.get_vocab(),
        new_tokens=new_tokens,
        min_count=min_count,
        may_join=joins_of(content),
    )
    if not pairs:
        raise ValueError(
            f"no two tokens stand beside each other {min_count} times within words of the "
            "corpora, so there is no token to add: lower the least count, ingest more texts, or "
            "set backbone.vocabulary to keep"
        )
    return pairs


def count_words(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Counter[Word]:
    """How often each word occurs: what the tokenizer cuts texts into first, and at spaces."""
    names = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    words: Counter[Word] = Counter()
    for batch in batches(texts):
        for encoding in tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False):
            word: list[str] = []
            place = None
            for id_, its_place in zip(encoding.ids, encoding.word_ids, strict=True):
                token = names[id_]
                if word and (its_place != place or token.startswith(SPACE)):
                    words[tuple(word)] += 1
                    word = []
                word.append(token)
                place = its_place
            if word:
                words[tuple(word)] += 1
    return words


def join_pairs(
    words: Mapping[Word, int],
    known: Collection[str],
    *,
    new_tokens: int,
    min_count: int,
    may_join: Callable[[str], bool],
) -> list[Pair]:
    """Join the most frequent pair everywhere, again and again; equal counts go by the alphabet.

    Args:
        words: How often each occurs.
        known: Tokens that no pair may make again: others hold them already.
        new_tokens: Most pairs.
        min_count: Least occurrences of a pair, where it is joined.
        may_join: Whether a token may be made.

    Returns:
        The pairs in the order in which they were joined.
    """
    cuts = _Cuts(words)
    taken = set(known)
    pairs: list[Pair] = []
    while len(pairs) < new_tokens and (pair := cuts.most_frequent(min_count)):
        token = "".join(pair)
        if token in taken or not may_join(token):
            continue
        cuts.join(pair)
        taken.add(token)
        pairs.append(pair)
    return pairs


class _Cuts:
    """How words are cut into tokens, and how often each two stand beside each other."""

    def __init__(self, words: Mapping[Word, int]) -> None:
        self._words = list(words)
        self._counts = list(words.values())
        self._totals: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, set[int]] = defaultdict(set)
        for place, word in enumerate(self._words):
            for pair in pairwise(word):
                self._totals[pair] += self._counts[place]
                self._places[pair].add(place)
        self._heap = [(-count, pair) for pair, count in self._totals.items()]
        heapq.heapify(self._heap)

    def most_frequent(self, min_count: int) -> Pair | None:
        """The most frequent pair, given once until its count changes; None where none is left."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            count = self._totals[pair]
            if count == -negative:
                return pair if count >= min_count else None
            if 0 < count < -negative:  # it stood higher before; a count that rose has its own entry
                heapq.heappush(self._heap, (-count, pair))
        return None

    def join(self, pair: Pair) -> None:
        """Make the two one token wherever they stand beside each other."""
        changes: Counter[Pair] = Counter()
        for place in sorted(self._places.pop(pair)):
            old = self._words[place]
            new = _joined(old, pair)
            for each in pairwise(old):
                changes[each] -= self._counts[place]
            for each in pairwise(new):
                changes[each] += self._counts[place]
                self._places[each].add(place)
            self._words[place] = new
        for each, change in changes.items():
            self._totals[each] += change
            if change > 0:
                heapq.heappush(self._heap, (-self._totals[each], each))


def _joined(word: Word, pair: Pair) -> Word:
    """The word with the pair made one, from its beginning on."""
    joined: list[str] = []
    place = 0
    while place < len(word):
        size = 2 if word[place : place + 2] == pair else 1
        joined.append("".join(word[place : place + size]))
        place += size
    return tuple(joined)


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> PreTrainedTokenizerFast:
    """The tokenizer with a token more for each pair; all ids stay, the new ones follow the largest.

    Raises:
        ValueError: The tokenizer cannot be extended.
    """
    content = content_of(tokenizer)
    content["model"] = grown_model(content, pairs)
    around = tokenizer("").input_ids
    return rewritten(tokenizer, content, tokens=len(tokenizer) + len(pairs), around=around)


def means_of_pieces(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> list[Mixture]:
    """For each new token the mean of the rows of the old tokens that it joins.

    Args:
        tokenizer: As it was.
        pairs: What it is extended by.
    """
    every = pieces_of(pairs, tokenizer.get_vocab())
    return [(ids, [1 / len(ids)] * len(ids)) for ids in every]


def grown_rows(rows_VD: Tensor, known: int, mixtures: Sequence[Mixture]) -> Tensor:
    """The rows of the known tokens as they are, and a weighted sum of them for each new one.

    Args:
        rows_VD: A table of a row per token, of the input or of the output; rows beyond the known
            tokens, as tables are padded with, are dropped.
        known: As many tokens have a row that stays.
        mixtures: Of each new token, in the order of ids.
    """
    new = [torch.tensor(weights) @ rows_VD[torch.tensor(ids)] for ids, weights in mixtures]
    return torch.cat([rows_VD[:known], torch.stack(new)])


def extend(decoder: PreTrainedModel, known: int, mixtures: Sequence[Mixture]) -> None:
    """Give a decoder, in place, a row for each new token.

    Args:
        decoder: Without language-model head.
        known: As many tokens had a row.
        mixtures: Of each new token.

    Raises:
        ValueError: The decoder keeps a second table of a row per token.
    """
    require_one_table(decoder)
    rows_VD = decoder.get_input_embeddings().weight.detach()  # pyright: ignore[reportCallIssue]  # a matrix
    set_rows(decoder, grown_rows(rows_VD, known, mixtures))
