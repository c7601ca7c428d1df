"""Keeps training and benchmark apart: no equal text, no long common word sequence."""

from collections.abc import Iterable

from infra.sample.split import tokens

SHINGLE_WORDS = 13
"""A benchmark text may not share that many consecutive words with a training text."""


def _shingles(text: str) -> Iterable[tuple[str, ...]]:
    words = tokens(text)
    return (tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))


class Guard:
    """Remembers the training texts and refuses benchmark texts that repeat them."""

    def __init__(self, train_texts: Iterable[str]) -> None:
        self._texts: set[str] = set()
        self._shingles: set[tuple[str, ...]] = set()
        for text in train_texts:
            self._texts.add(" ".join(tokens(text)))
            self._shingles.update(_shingles(text))

    def is_new(self, *texts: str) -> bool:
        """Whether none of the texts equals or largely repeats a training text."""
        return all(
            " ".join(tokens(text)) not in self._texts
            and not any(shingle in self._shingles for shingle in _shingles(text))
            for text in texts
        )
