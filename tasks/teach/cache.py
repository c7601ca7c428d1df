"""Vectors that a teacher has given so far: a file that only grows, so that a kill loses a block.

Shape letters: T = texts in the cache, M = texts added, D = numbers per vector.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.writing import writing

KEY_BYTES, NUMBER_BYTES = 8, 2

logger = logging.getLogger(__name__)

Keys = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.float16]


class VectorCache:
    """Keys of texts and their vectors, in the order in which they were computed."""

    def __init__(self, folder: Path, size: int) -> None:
        """Open a cache, or begin one; what a killed run left half-written is cut off.

        Args:
            folder: Of one teacher, as it is and as it is asked.
            size: D.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.size = size
        self._key_file, self._vector_file = folder / "keys.bin", folder / "vectors.bin"
        for file in (self._key_file, self._vector_file):
            file.touch()
        texts = min(
            self._key_file.stat().st_size // KEY_BYTES,
            self._vector_file.stat().st_size // (NUMBER_BYTES * size),
        )
        _cut(self._key_file, texts * KEY_BYTES)
        _cut(self._vector_file, texts * NUMBER_BYTES * size)
        self._added = [np.fromfile(self._key_file, dtype="<u8")]

    def missing(self, keys: Keys) -> npt.NDArray[np.intp]:
        """Places of the keys that have no vector yet."""
        return np.flatnonzero(~np.isin(keys, self._keys()))

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Keep the vectors (M, D) of these keys (M,).

        Raises:
            OSError: The disk is full; what was there stays as it was.
        """
        # keys last: a vector without a key is cut off by the next run
        for file, content in ((self._vector_file, vectors), (self._key_file, keys)):
            with writing(file), file.open("ab") as stream:
                stream.write(np.ascontiguousarray(content).tobytes())
        self._added.append(keys)

    def reader(self) -> Callable[[Keys], Vectors]:
        """What gives the vectors (M, D) of keys that are in the cache as it is now."""
        key_T = self._keys()
        order_T = np.argsort(key_T, kind="stable")
        vector_TD = np.memmap(self._vector_file, dtype="<f2", mode="r").reshape(-1, self.size)

        def read(keys: Keys) -> Vectors:
            return vector_TD[order_T[np.searchsorted(key_T, keys, sorter=order_T)]]

        return read

    def _keys(self) -> Keys:
        """All keys (T,), in the order of the vectors."""
        self._added = [np.concatenate(self._added)]
        return self._added[0]


def _cut(file: Path, size: int) -> None:
    if file.stat().st_size > size:
        logger.info("%s: cutting off what a killed run left half-written", file)
        with file.open("r+b") as stream:
            stream.truncate(size)
