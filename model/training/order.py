"""Which rows each step trains on, as a pure function of the seed and the step.

Nothing here remembers what came before, so a resumed training asks for step 4001 and gets it.

Shape letters: R = rows of a source, G = groups of rows.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np


def draw_sources(
    rows: list[int], weights: list[float], *, temperature: float, max_steps: int, seed: int
) -> np.ndarray:
    """Source of each step, (max_steps,) int; probability ~ weight * rows ** temperature."""
    share = (
        np.asarray(weights, dtype=np.float64) * np.asarray(rows, dtype=np.float64) ** temperature
    )
    return np.random.default_rng([seed, 0]).choice(len(rows), size=max_steps, p=share / share.sum())


def spread_order(group_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random order of the rows in which equal groups lie as far apart as they can.

    A group of m rows gets one random place in [0, 1) and puts its rows, shuffled, at that place
    plus 0/m, 1/m, ... (modulo 1). Every row is still uniformly distributed over the order.
    """
    _, group_R, count_G = np.unique(group_R, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(group_R))
    by_group = shuffled[np.argsort(group_R[shuffled], kind="stable")]
    start_G = np.cumsum(count_G) - count_G
    rank_R = np.empty(len(group_R), dtype=np.int64)
    rank_R[by_group] = np.arange(len(group_R)) - start_G[group_R[by_group]]
    place_R = (rng.random(len(count_G))[group_R] + rank_R / count_G[group_R]) % 1.0
    return np.argsort(place_R, kind="stable")


@dataclass
class SourceOrder:
    """Batches of one source: a new seeded permutation per epoch, walked without replacement.

    The remainder of an epoch that fills no batch is left out of that epoch.
    """

    name: str
    groups: np.ndarray
    """(R,); rows of one number share their positive and are kept in different batches."""
    batch_size: int
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64), init=False)

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, len(self.groups))

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one walk over the rows."""
        return len(self.groups) // self.batch_size

    def rows_of_visit(self, visit: int) -> np.ndarray:
        """Rows of the batch taken when the source is drawn for the `visit`-th time, from 0."""
        epoch, place = divmod(visit, self.batches_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 1, zlib.crc32(self.name.encode()), epoch])
            self._epoch, self._order = epoch, spread_order(self.groups, rng)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def visited_rows(self, visits: int) -> np.ndarray:
        """Sorted rows that the first `visits` batches touch: the rest need no tokens."""
        if visits >= self.batches_per_epoch:
            return np.arange(len(self.groups))
        touched = [self.rows_of_visit(visit) for visit in range(visits)]
        return np.sort(np.concatenate(touched)) if touched else np.empty(0, dtype=np.int64)
