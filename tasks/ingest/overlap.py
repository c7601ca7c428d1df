"""Training texts that an evaluation set contains, found by 64-bit hashes.

A text overlaps when its letters and digits are those of an evaluation text, or when it shares a
run of words with one (13 in GPT-3, arXiv:2005.14165, appendix C). One false alarm is expected in
2**64 comparisons: none for corpora of any size we see.
"""

from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from tasks.ingest.fingerprint import Fingerprint, fingerprint

MIN_EQUAL_WORDS = 3
MIN_EQUAL_CHARACTERS = 12
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_UNKNOWN = 0


class Match(NamedTuple):
    """The evaluation task a text overlaps, and by what."""

    task: str
    what: str

    def __str__(self) -> str:
        return f"{self.task}: {self.what}"


class OverlapIndex:
    """Every evaluation text, ready for questions.

    Equality is asked only of evaluation texts of 3 words or 12 letters and digits: a shorter one
    (`yes`, the name of a class) stands in any corpus and gives nothing away.
    """

    def __init__(self, tasks: list[str], texts: list[str], window_words: int) -> None:
        """Index `texts`; `tasks` names the task of each, and is what an answer tells."""
        self._window_words = window_words
        self._tasks = tasks
        self._equal: dict[int, int] = {}
        self._word_ids: dict[str, int] = {}
        ids: list[NDArray[np.int32]] = []
        for number, text in enumerate(texts):
            print_ = fingerprint(text)
            if is_telling(print_.words):
                self._equal.setdefault(print_.key, number)
            ids.append(self._learn(print_.words))
        self._word_hashes = np.array(
            [0, *(xxhash.xxh3_64_intdigest(word.encode()) for word in self._word_ids)],
            dtype=np.uint64,
        )
        lengths = np.array([len(words) for words in ids], dtype=np.int64)
        all_ids = np.concatenate([*ids, np.zeros(0, np.int32)])
        starts = self._known_windows(all_ids)
        self._window_hashes, first = np.unique(self._hash(all_ids, starts), return_index=True)
        ends = np.cumsum(lengths)
        self._window_texts = np.searchsorted(ends, starts[first], side="right")

    def find(self, fingerprints: list[Fingerprint]) -> list[Match | None]:
        """For each text None, or what it overlaps."""
        answers = self._shared_windows(fingerprints)
        for number, print_ in enumerate(fingerprints):
            text = self._equal.get(print_.key)
            if text is not None:
                answers[number] = Match(self._tasks[text], "the whole text")
        return answers

    def _shared_windows(self, fingerprints: list[Fingerprint]) -> list[Match | None]:
        answers: list[Match | None] = [None] * len(fingerprints)
        words = [print_.words for print_ in fingerprints]
        # One unknown word after each text, so that no window spans two.
        lengths = np.array([len(text) + 1 for text in words], dtype=np.int64)
        ends = np.cumsum(lengths)
        ids = np.fromiter(
            map(
                self._word_ids.get,
                chain.from_iterable(chain(text, ("",)) for text in words),
                repeat(_UNKNOWN),
            ),
            dtype=np.int32,
            count=int(lengths.sum()),
        )
        starts = self._known_windows(ids)
        if not len(starts) or not len(self._window_hashes):
            return answers
        hashes = self._hash(ids, starts)
        places = np.minimum(
            np.searchsorted(self._window_hashes, hashes), len(self._window_hashes) - 1
        )
        # Backwards, so that the first shared run of a text is the one that is told.
        for hit in np.flatnonzero(self._window_hashes[places] == hashes)[::-1]:
            number = int(np.searchsorted(ends, starts[hit], side="right"))
            start = int(starts[hit] - (ends[number] - lengths[number]))
            run = " ".join(words[number][start : start + self._window_words])
            task = self._tasks[int(self._window_texts[places[hit]])]
            answers[number] = Match(task, f"{self._window_words} words: {run}")
        return answers

    def _learn(self, words: list[str]) -> NDArray[np.int32]:
        ids = self._word_ids
        numbers = [ids.setdefault(word, len(ids) + 1) for word in words]
        return np.array([*numbers, _UNKNOWN], dtype=np.int32)

    def _known_windows(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Starts of the windows without an unknown word."""
        known = np.concatenate([[0], np.cumsum(ids != _UNKNOWN)])
        width = self._window_words
        return np.flatnonzero(known[width:] - known[:-width] == width)

    def _hash(self, ids: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Polynomial of the words' hashes, modulo 2**64."""
        hashes = np.zeros(len(starts), dtype=np.uint64)
        for offset in range(self._window_words):
            hashes *= _MULTIPLIER
            hashes += self._word_hashes[ids[starts + offset]]
        return hashes


def is_telling(words: list[str]) -> bool:
    """Whether a text is long enough for its equal to be no coincidence."""
    return len(words) >= MIN_EQUAL_WORDS or sum(map(len, words)) >= MIN_EQUAL_CHARACTERS
