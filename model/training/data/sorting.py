"""Orders of many rows in little memory: 16 bytes per row while it sorts, 4 bytes per row of result.

Row numbers are uint32 and every gather goes in slices, since numpy copies an index to int64 first.

Shape letters: R = rows, G = runs of equal numbers.
"""

from collections.abc import Iterator

import numpy as np

MOST_ROWS = 2**32
ROWS_AT_ONCE = 1 << 20
_LOW = np.uint64(MOST_ROWS - 1)
_SHIFT = np.uint64(32)


def slices(rows: int) -> Iterator[slice]:
    """Consecutive slices over this many rows, each short enough to be copied."""
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def take(values: np.ndarray, index_R: np.ndarray) -> np.ndarray:
    """`values[index_R]` for an index of uint32."""
    taken_R = np.empty(len(index_R), dtype=values.dtype)
    for part in slices(len(index_R)):
        taken_R[part] = values[index_R[part]]
    return taken_R


def stable_order(coarse_R: np.ndarray, fine_R: np.ndarray | None = None) -> np.ndarray:
    """Row numbers, uint32, by rising value and, where values are equal, by rising row.

    Args:
        coarse_R: The value rounded down to a uint32 of any scale.
        fine_R: The value itself; None where `coarse_R` says it all.

    Raises:
        ValueError: There are more rows than a uint32 can number.
    """
    rows = len(coarse_R)
    if rows >= MOST_ROWS:
        raise ValueError(f"{rows} rows in one source, at most {MOST_ROWS - 1}: split the source")
    key_R = coarse_R.astype(np.uint64)
    key_R <<= _SHIFT
    for part in slices(rows):
        key_R[part] |= np.arange(part.start, part.stop, dtype=np.uint32)
    key_R.sort()
    order_R = np.empty(rows, dtype=np.uint32)
    for part in slices(rows):
        order_R[part] = key_R[part] & _LOW
    if fine_R is not None:
        _sort_ties(order_R, key_R, fine_R)
    return order_R


def run_starts(value_R: np.ndarray, order_R: np.ndarray) -> np.ndarray:
    """Where in `order_R` a run of equal values begins, and the number of rows, (G + 1,) uint32."""
    begins_R = np.ones(len(order_R) + 1, dtype=bool)
    for part in slices(len(order_R) - 1):
        follows = slice(part.start + 1, part.stop + 1)
        begins_R[follows] = value_R[order_R[follows]] != value_R[order_R[part]]
    # in slices: the row numbers of flatnonzero are int64
    starts = [
        (part.start + np.flatnonzero(begins_R[part])).astype(np.uint32)
        for part in slices(len(begins_R))
    ]
    return np.concatenate(starts)


def _sort_ties(order_R: np.ndarray, key_R: np.ndarray, fine_R: np.ndarray) -> None:
    """Sort the rows of equal coarse but different fine value, in place; they are few."""
    tied = [np.empty(0, dtype=np.uint64)]
    for part in slices(len(order_R) - 1):
        follows = slice(part.start + 1, part.stop + 1)
        coarse = key_R[follows] >> _SHIFT
        is_tied = coarse == key_R[part] >> _SHIFT
        is_tied &= fine_R[order_R[follows]] != fine_R[order_R[part]]
        tied.append(coarse[is_tied])
    coarse_G = np.unique(np.concatenate(tied))
    start_G = np.searchsorted(key_R, coarse_G << _SHIFT)
    count_G = np.searchsorted(key_R, coarse_G << _SHIFT | _LOW, "right") - start_G
    run_T = np.repeat(np.arange(len(coarse_G)), count_G)
    within_T = np.arange(len(run_T)) - np.repeat(np.cumsum(count_G) - count_G, count_G)
    place_T = start_G[run_T] + within_T
    row_T = order_R[place_T]
    order_R[place_T] = row_T[np.lexsort((row_T, fine_R[row_T], run_T))]
