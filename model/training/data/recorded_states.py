"""States that a frozen part of a decoder gave to the tokens of texts, kept on disk.

A folder holds `states.bin`, a row per token in float16, and `exponents.bin`, the power of two that
each row was divided by: the states of decoders exceed the range of float16. Rows stay on disk: the
memory they take is the page cache's.

Shape letters: T = tokens of all texts, N = tokens of some texts, H = hidden size.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.writing import writing

STATES_FILE, EXPONENTS_FILE = "states.bin", "exponents.bin"
LARGEST_EXPONENT = 15
"""No number of a row is 2 ** 15 or more once it is divided."""
BLOCK_TEXTS = 256
"""Texts that are written together; a folder that was broken off goes on after whole blocks."""

Ids = Sequence[int]
"""Token ids of a text, its prompt in front."""


class RecordedStates:
    """The states of a list of texts, written once from front to end and then looked up."""

    def __init__(self, folder: Path, texts: Iterable[Ids], hidden_size: int) -> None:
        """Say which texts the folder holds or is to hold.

        Args:
            folder: Is made; another list of texts needs another folder.
            texts: In the order of the rows; a text that comes again is the same.
            hidden_size: H.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._states, self._exponents = folder / STATES_FILE, folder / EXPONENTS_FILE
        self._hidden_size = hidden_size
        self._start: dict[bytes, int] = {}
        self.tokens = 0
        """T."""
        for ids in texts:
            key = _key(ids)
            if key not in self._start:
                self._start[key] = self.tokens
                self.tokens += len(ids)
        self._rows: tuple[np.memmap, np.memmap] | None = None

    @property
    def num_texts(self) -> int:
        """Different texts."""
        return len(self._start)

    @property
    def num_written(self) -> int:
        """Texts whose states are on the disk, in whole blocks."""
        return self.num_texts - sum(len(block) for block in self._blocks(from_token=self._written))

    def missing(self) -> Iterator[list[list[int]]]:
        """Blocks of texts that are not written yet, each to be handed to `append` before the next.

        What a killed run had written of a block is cut off: a block is computed as a whole, so that
        its rows are the same.
        """
        for block in self._blocks(from_token=self._written):
            self._cut(self.places(block[0]).start)
            yield block

    def append(self, state_NH: npt.NDArray[np.float32]) -> None:
        """Write the states of the next block.

        Raises:
            ValueError: A state is not finite.
            OSError: The disk is full.
        """
        largest_N = np.abs(state_NH).max(axis=1)
        if not np.isfinite(largest_N).all():
            raise ValueError(
                "a block that is not trained gives states that are no numbers: take a decoder "
                "whose weights are sound, or precision fp32"
            )
        exponent_N = np.maximum(np.frexp(largest_N)[1] - LARGEST_EXPONENT, 0).astype(np.int8)
        row_NH = np.ldexp(state_NH, -exponent_N[:, None].astype(np.int32)).astype(np.float16)
        # the short file last: its length says how far both were written
        for file, values in ((self._states, row_NH), (self._exponents, exponent_N)):
            with writing(file), file.open("ab") as stream:
                stream.write(values.tobytes())

    def places(self, ids: Ids) -> range:
        """Rows of a text.

        Raises:
            KeyError: It is none of the texts.
        """
        start = self._start[_key(ids)]
        return range(start, start + len(ids))

    def rows(self, place_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """States (N, H) in these rows, once all are written."""
        if self._rows is None:
            shape = (self.tokens, self._hidden_size)
            self._rows = (
                np.memmap(self._states, np.float16, "r", shape=shape),
                np.memmap(self._exponents, np.int8, "r", shape=shape[:1]),
            )
        row_TH, exponent_T = self._rows
        exponent_N = exponent_T[place_N].astype(np.int32)
        return np.ldexp(row_TH[place_N].astype(np.float32), exponent_N[..., None])

    @property
    def _written(self) -> int:
        """Tokens whose states are on the disk."""
        return self._exponents.stat().st_size if self._exponents.exists() else 0

    def _blocks(self, *, from_token: int) -> Iterator[list[list[int]]]:
        """Blocks of which a token from this one on is a part."""
        texts = iter(self._start)
        while block := [array("i", key).tolist() for key in islice(texts, BLOCK_TEXTS)]:
            if self.places(block[-1]).stop > from_token:
                yield block

    def _cut(self, tokens: int) -> None:
        for file, bytes_per_token in ((self._states, 2 * self._hidden_size), (self._exponents, 1)):
            with file.open("ab") as stream:
                stream.truncate(tokens * bytes_per_token)


def _key(ids: Ids) -> bytes:
    """A text as four bytes per token: a tuple of numbers takes nine times as many."""
    return array("i", ids).tobytes()
