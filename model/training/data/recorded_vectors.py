"""Vectors that another model gave to texts, kept on disk and found by the text.

A folder holds `keys.npy`, rising hashes of texts, and `vectors.npy`, their vectors in float16. Both
stay on disk: the memory they take is the page cache's.

Shape letters: T = texts in the folder, M = texts asked for, D = numbers per vector.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.writing import writing

KEYS_FILE, VECTORS_FILE = "keys.npy", "vectors.npy"
SHOWN_CHARACTERS = 60
SUMMED_ROWS = 65536
NARROWEST = 1e-4
"""Added to the variance of each direction, in shares of the widest one's."""

Shown = tuple[bool, str]
"""Whether a text was shown as a query, and the text."""


def text_keys(texts: Iterable[Shown]) -> npt.NDArray[np.uint64]:
    """64-bit hash of each text and of how it was shown, (M,)."""
    digests = (
        hashlib.blake2b(f"{'q' if is_query else 'd'}{text}".encode(), digest_size=8).digest()
        for is_query, text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


def write_vectors(
    folder: Path,
    keys: npt.NDArray[np.uint64],
    size: int,
    blocks: Iterable[npt.NDArray[np.float16]],
) -> None:
    """Write a folder of vectors, block by block.

    Args:
        folder: Is made.
        keys: Rising, (T,).
        size: D.
        blocks: The vectors (T, D) of these keys, in slices.

    Raises:
        OSError: The disk is full.
    """
    folder.mkdir(parents=True)
    rows = np.zeros((0, size), dtype=np.float16)
    for name, values, shape, parts in (
        (KEYS_FILE, keys, keys.shape, [keys]),
        (VECTORS_FILE, rows, (len(keys), size), blocks),
    ):
        file = folder / name
        header = np.lib.format.header_data_from_array_1_0(values) | {"shape": shape}
        with writing(file), file.open("wb") as stream:
            np.lib.format.write_array_header_2_0(stream, header)
            for part in parts:
                stream.write(np.ascontiguousarray(part).tobytes())


class RecordedVectors:
    """The vectors of a folder."""

    def __init__(self, folder: Path, *, whitening: float | None = None) -> None:
        """Map the files.

        Args:
            folder: Of `write_vectors`.
            whitening: How far all directions are made equally wide, from 0, which only takes the
                mean of all vectors off each, to 0.5; None gives them as they are. See `_whitened`.

        Raises:
            ValueError: The folder holds no vectors, or files that do not fit each other.
        """
        self._folder = folder
        try:
            self._key_T = np.load(folder / KEYS_FILE, mmap_mode="r")
            self._vector_TD = np.load(folder / VECTORS_FILE, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no vectors of texts ({error}): run its stage") from error
        if len(self._key_T) != len(self._vector_TD):
            raise ValueError(
                f"{folder} holds {len(self._key_T)} texts and {len(self._vector_TD)} vectors: run "
                "its stage again"
            )
        self._whitening = None if whitening is None else self._whitened(whitening)

    def find(self, texts: Sequence[Shown]) -> npt.NDArray[np.float32]:
        """Unit-norm vectors of these texts, (M, D).

        Raises:
            ValueError: One has none.
        """
        key_M = text_keys(texts)
        place_M = np.searchsorted(self._key_T, key_M)
        found_M = place_M < len(self._key_T)
        found_M[found_M] = self._key_T[place_M[found_M]] == key_M[found_M]
        if not found_M.all():
            is_query, text = texts[int(np.flatnonzero(~found_M)[0])]
            raise ValueError(
                f"{np.count_nonzero(~found_M)} of {len(texts)} texts have no vector in "
                f"{self._folder}, such as the {'query' if is_query else 'document'} "
                f"{text[:SHOWN_CHARACTERS]!r}: name their source under teach.sources, and set "
                "teach.documents where documents are mined"
            )
        vector_MD = _unit(self._vector_TD[place_M])
        if self._whitening is None:
            return vector_MD
        mean_D, map_DD = self._whitening
        return _unit((vector_MD - mean_D) @ map_DD)

    def _whitened(self, power: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean (D,) of the unit vectors of all texts, and their covariance (D, D) to a power.

        With power 0.5 the vectors less their mean, times the map, have the same variance in every
        direction; below that the wide ones stay wider. Source: whitening of sentence vectors, Su et
        al. 2021, arXiv:2103.15316, here without turning the axes and with a power for the strength.
        """
        size = self._vector_TD.shape[1]
        sum_D, square_DD = np.zeros(size), np.zeros((size, size))
        for start in range(0, len(self._vector_TD), SUMMED_ROWS):
            part = _unit(self._vector_TD[start : start + SUMMED_ROWS]).astype(np.float64)
            sum_D += part.sum(axis=0)
            square_DD += part.T @ part
        count = max(1, len(self._vector_TD))
        mean_D = sum_D / count
        width_D, axis_DD = np.linalg.eigh(square_DD / count - np.outer(mean_D, mean_D))
        # directions in which nothing varies are noise of float16
        factor_D = (width_D.clip(0) + NARROWEST * width_D.max()) ** -power
        return mean_D.astype(np.float32), ((axis_DD * factor_D) @ axis_DD.T).astype(np.float32)


def _unit(vector_MD: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    vector_MD = vector_MD.astype(np.float32)
    return vector_MD / np.linalg.norm(vector_MD, axis=1, keepdims=True)
