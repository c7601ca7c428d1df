"""Vectors that a teacher has given so far: a file that only grows, so that a kill loses a block.

Each record has a checksum of its own: what a crash of the machine left half-written, or a disk
changed, is found when the file is opened, and its text counts as not asked about.

Shape letters: T = texts in the cache, M = texts added, D = numbers per vector.
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.writing import writing

PREFIX, SUFFIX = "vectors-", ".bin"
"""Around D in the name of the file."""
SUMMED = 4
"""Bytes at the start of a record that hold the checksum of the rest."""

logger = logging.getLogger(__name__)

Keys = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.float16]
Reader = Callable[[Keys], Vectors]


class VectorCache:
    """Keys of texts, their vectors and the tokens they cost, as they were computed."""

    def __init__(self, folder: Path) -> None:
        """Open a cache, or begin one.

        Args:
            folder: Of one teacher, as it is and as it is asked.
        """
        self.folder = folder
        self.size: int | None = None
        """D, None before the first vector."""
        self._keys: list[Keys] = [np.zeros(0, dtype=np.uint64)]
        self._places: list[npt.NDArray[np.intp]] = [np.zeros(0, dtype=np.intp)]
        self._records = 0
        for file in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
            self._open(file, int(file.name.removeprefix(PREFIX).removesuffix(SUFFIX)))

    def missing(self, keys: Keys) -> npt.NDArray[np.intp]:
        """Places of the keys that have no vector yet."""
        return np.flatnonzero(~np.isin(keys, self._joined()[0]))

    def check_size(self, size: int) -> None:
        """See that vectors are of the size of those before.

        Raises:
            ValueError: They are not; the message goes on after the name of the teacher.
        """
        if self.size is not None and size != self.size:
            raise ValueError(
                f"gives vectors of {size} numbers, and gave {self.size} before: it is another "
                f"model under the same name. Give the old one back, or remove {self.folder} to "
                "have every text asked about again"
            )

    def add(self, keys: Keys, vectors: Vectors, tokens: int = 0) -> None:
        """Keep the vectors (M, D) of these keys (M,), on disk when it returns.

        Args:
            keys: Of the texts.
            vectors: Theirs.
            tokens: What all of them cost together; each text bears an equal share.

        Raises:
            ValueError: They are of another size than those before.
            OSError: The disk is full; what was there stays as it was.
        """
        size = vectors.shape[1]
        self.check_size(size)
        self.size = size
        record_M = np.zeros(len(keys), dtype=_record(size))
        record_M["key"], record_M["vector"] = keys, vectors
        record_M["tokens"] = tokens // len(keys)
        record_M["tokens"][: tokens % len(keys)] += 1
        record_M["sum"] = _sums(record_M)
        self.folder.mkdir(parents=True, exist_ok=True)
        _append(self._file(size), record_M.tobytes())
        self._keys.append(keys)
        self._places.append(np.arange(self._records, self._records + len(keys)))
        self._records += len(keys)

    def reader(self) -> Reader:
        """What gives the vectors (M, D) of keys that are in the cache as it is now."""
        find = self._finder()

        def read(keys: Keys) -> Vectors:
            return find(keys)["vector"]

        return read

    def tokens(self, keys: Keys) -> int:
        """What the texts of these keys cost."""
        return int(self._finder()(keys)["tokens"].sum(dtype=np.int64))

    def _finder(self) -> Callable[[Keys], np.ndarray]:
        key_T, place_T = self._joined()
        order_T = np.argsort(key_T, kind="stable")
        record_T = self._mapped()

        def find(keys: Keys) -> np.ndarray:
            return record_T[place_T[order_T[np.searchsorted(key_T, keys, sorter=order_T)]]]

        return find

    def _open(self, file: Path, size: int) -> None:
        bytes_each = _record(size).itemsize
        whole, rest = divmod(file.stat().st_size, bytes_each)
        if rest:
            logger.info("%s: cutting off what a killed run left half-written", file)
            os.truncate(file, whole * bytes_each)
        if not whole:
            return
        self.size, self._records = size, whole
        record_T = self._mapped()
        sound_T = _sums(record_T) == record_T["sum"]
        if not sound_T.all():
            logger.warning(
                "%s: %d of %d vectors are damaged, their texts count as not asked about",
                *(file, np.count_nonzero(~sound_T), whole),
            )
        self._keys.append(record_T["key"][sound_T])
        self._places.append(np.flatnonzero(sound_T))

    def _mapped(self) -> np.ndarray:
        """All records, damaged ones included."""
        assert self.size is not None  # noqa: S101 - nobody reads before there is a vector
        return np.memmap(self._file(self.size), dtype=_record(self.size), mode="r")

    def _file(self, size: int) -> Path:
        return self.folder / f"{PREFIX}{size}{SUFFIX}"

    def _joined(self) -> tuple[Keys, npt.NDArray[np.intp]]:
        """All keys (T,) and the places of their records."""
        self._keys = [np.concatenate(self._keys)]
        self._places = [np.concatenate(self._places)]
        return self._keys[0], self._places[0]


def _record(size: int) -> np.dtype:
    fields = [("sum", "<u4"), ("tokens", "<u4"), ("key", "<u8"), ("vector", "<f2", (size,))]
    return np.dtype(fields)


def _sums(record_M: np.ndarray) -> npt.NDArray[np.uint32]:
    """Checksum of each record, less the place where it is kept."""
    sums = (zlib.crc32(memoryview(record)[SUMMED:]) for record in _rows(record_M))
    return np.fromiter(sums, dtype=np.uint32, count=len(record_M))


def _rows(record_M: np.ndarray) -> npt.NDArray[np.uint8]:
    return record_M.view(np.uint8).reshape(len(record_M), record_M.dtype.itemsize)


def _append(file: Path, content: bytes) -> None:
    """Write at the end of a file all of it, or nothing unless the process dies."""
    with writing(file), file.open("ab", buffering=0) as stream:
        end = stream.tell()
        try:
            view = memoryview(content)
            while view:
                view = view[stream.write(view) :]
            os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # the next run cuts it as well
                os.truncate(file, end)
            raise
