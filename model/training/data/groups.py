"""Which rows share a positive, found by hash in bounded memory.

The hash serves to order rows alone: what is a negative of what is decided by the texts of the
batch in hand, so two texts of one hash cost nothing but a little distance between their rows.

Shape letters: R = rows, F = positives of all rows, S = strings of a chunk.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.training.data.memory_mapped import keep_array
from model.training.data.sorting import run_starts, slices, stable_order
from model.writing import writing

_STRINGS_AT_ONCE = 1 << 16
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_WORD_BYTES = 8
_KEPT_BITS = np.array(
    [(1 << 8 * count) - 1 for count in range(_WORD_BYTES + 1)], dtype=np.uint64
)  # of a word of which so many bytes belong to the string


def string_hashes(strings: pa.Array) -> np.ndarray:
    """64-bit hash of the bytes of each string, (S,) uint64; null counts as empty.

    Eight bytes at a time of all strings together, so the cost is that of numpy, not of Python.
    """
    hashes = [
        _hashes(strings.slice(start, _STRINGS_AT_ONCE))
        for start in range(0, len(strings), _STRINGS_AT_ONCE)
    ]
    return np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)


def _hashes(strings: pa.Array) -> np.ndarray:
    assert sys.byteorder == "little"  # noqa: S101 - as Arrow itself; words are read as they lie
    wide = strings.cast(pa.large_string())
    _, offsets, data = wide.buffers()
    end_S = np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    first, last = int(end_S[0]), int(end_S[-1])
    padded = np.zeros(last - first + _WORD_BYTES, dtype=np.uint8)
    padded[: last - first] = np.frombuffer(data or b"", np.uint8)[first:last]
    word_at = np.ndarray((last - first + 1,), np.uint64, padded, strides=(1,))
    start_S, left_S = end_S[:-1] - first, np.diff(end_S)
    hash_S = left_S.astype(np.uint64) * _MULTIPLIER
    longer = np.flatnonzero(left_S > 0)
    while len(longer):
        word = word_at[start_S[longer]] & _KEPT_BITS[np.minimum(left_S[longer], _WORD_BYTES)]
        hash_S[longer] = _mixed(hash_S[longer] ^ word)
        start_S[longer] += _WORD_BYTES
        left_S[longer] -= _WORD_BYTES
        longer = longer[left_S[longer] > 0]
    return _mixed(hash_S)


def _mixed(hash_S: np.ndarray) -> np.ndarray:
    hash_S = (hash_S ^ (hash_S >> np.uint64(32))) * _MULTIPLIER
    return (hash_S ^ (hash_S >> np.uint64(29))) * _MULTIPLIER


def group_rows(positives: pa.ChunkedArray, file: Path) -> np.ndarray:
    """Number of each row's first positive, (R,) uint32, a memory map of `file`.

    Rows of one number share that text. Numbers run from 0 without a gap, in the order in which
    their texts first stand among the positives.

    Raises:
        ValueError: A row has no positive.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lengths = [_lengths(chunk) for chunk in positives.chunks]
    count_R = np.concatenate([np.empty(0, dtype=np.uint32), *lengths])
    without = np.flatnonzero(count_R == 0)
    if len(without):
        raise ValueError(f"{len(without)} rows have no positive, the first is row {without[0]}")
    scratch = file.with_suffix(".hashes")
    with writing(scratch), scratch.open("wb") as stream:
        for chunk in positives.chunks:
            stream.write(string_hashes(chunk.flatten()).tobytes())
    group_R = _numbered(_first_places(np.memmap(scratch, np.uint64, "r")), count_R)
    scratch.unlink()
    return keep_array(group_R, file)


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint32)


def _first_places(hash_F: np.ndarray) -> np.ndarray:
    """Place at which the text of each positive stands first, (F,) uint32."""
    coarse_F = np.empty(len(hash_F), dtype=np.uint32)
    for part in slices(len(hash_F)):
        coarse_F[part] = hash_F[part] >> np.uint64(32)
    order_F = stable_order(coarse_F, hash_F)
    start_G = run_starts(hash_F, order_F)
    first_F = coarse_F  # of the right size, and done with
    for part in slices(len(hash_F)):
        run = np.searchsorted(start_G, np.arange(part.start, part.stop, dtype=np.uint32), "right")
        first_F[order_F[part]] = order_F[start_G[run - 1]]
    return first_F


def _numbered(first_F: np.ndarray, count_R: np.ndarray) -> np.ndarray:
    """The group of each row: the rank of its first positive's place among all such places."""
    start_R = np.cumsum(count_R, dtype=np.uint32)
    start_R -= count_R
    is_group_F = np.zeros(len(first_F), dtype=bool)
    for part in slices(len(start_R)):
        is_group_F[first_F[start_R[part]]] = True
    rank_F = np.cumsum(is_group_F, dtype=np.uint32)
    group_R = np.empty(len(start_R), dtype=np.uint32)
    for part in slices(len(start_R)):
        group_R[part] = rank_F[first_F[start_R[part]]] - 1
    return group_R
