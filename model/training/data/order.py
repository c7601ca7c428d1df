"""Which rows each step trains on, as a pure function of the seed and the step.

Nothing here remembers what came before, so a resumed training asks for step 4001 and gets it.

Shape letters: R = rows of a source, G = groups of rows.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model.training.data.memory_mapped import keep_array
from model.training.data.sorting import run_starts, slices, stable_order, take

ORDERS = "order-*.npy"
"""Files of `SourceOrder`, one at a time."""


def source_shares(rows: list[int], weights: list[float], temperature: float) -> np.ndarray:
    """Probability of each source: weight * rows ** temperature, over their sum.

    At temperature 0 the weights alone decide: a source of weight 2 is drawn twice as often as one
    of weight 1, whatever their sizes.
    """
    share = (
        np.asarray(weights, dtype=np.float64) * np.asarray(rows, dtype=np.float64) ** temperature
    )
    return share / share.sum()


def draw_sources(
    rows: list[int], weights: list[float], *, temperature: float, max_steps: int, seed: int
) -> np.ndarray:
    """Source of each step, (max_steps,) int, by `source_shares`."""
    share = source_shares(rows, weights, temperature)
    return np.random.default_rng([seed, 0]).choice(len(rows), size=max_steps, p=share)


def spread_order(group_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random order of the rows, uint32, in which equal groups lie as far apart as they can.

    A group of m rows gets one random place in [0, 1) and puts its rows, shuffled, at that place
    plus 0/m, 1/m, ... (modulo 1). Every row is still uniformly distributed over the order.

    Args:
        group_R: Group of each row, numbers from 0 without a gap.
        rng: Fresh, of a seed of its own.
    """
    shuffled_R = np.arange(len(group_R), dtype=np.uint32)
    rng.shuffle(shuffled_R)
    by_group = take(shuffled_R, stable_order(take(group_R, shuffled_R)))
    del shuffled_R
    place_R = _places(group_R, by_group, rng)
    coarse_R = np.empty(len(place_R), dtype=np.uint32)
    for part in slices(len(place_R)):
        coarse_R[part] = place_R[part] * 2.0**32
    return stable_order(coarse_R, place_R)


def _places(group_R: np.ndarray, by_group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place of each row in [0, 1), (R,) float64; `by_group` holds the rows group after group."""
    start_G = run_starts(group_R, by_group)
    random_G = rng.random(len(start_G) - 1)
    place_R = np.empty(len(group_R), dtype=np.float64)
    for part in slices(len(group_R)):
        rows = by_group[part]
        group = group_R[rows]
        rank = np.arange(part.start, part.stop) - start_G[group]
        count = start_G[group + 1] - start_G[group]
        place_R[rows] = (random_G[group] + rank / count) % 1.0
    return place_R


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
    folder: Path | None = None
    """Where the order of the epoch is kept, for a resumed training too; None keeps it in memory."""
    _epoch: int = field(default=-1, init=False)
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint32), init=False)

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, len(self.groups))

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one walk over the rows."""
        return len(self.groups) // self.batch_size

    @property
    def is_kept(self) -> bool:
        """Whether the order of some epoch is on disk."""
        return self.folder is not None and any(self.folder.glob(ORDERS))

    def rows_of_visit(self, visit: int) -> np.ndarray:
        """Rows of the batch taken when the source is drawn for the `visit`-th time, from 0."""
        epoch, place = divmod(visit, self.batches_per_epoch)
        return self.rows(epoch, place * self.batch_size, self.batch_size)

    def rows(self, epoch: int, start: int, count: int) -> np.ndarray:
        """These rows of the walk of an epoch."""
        if epoch != self._epoch:
            self._order = self._order_of(epoch)
            self._epoch = epoch
        return np.asarray(self._order[start : start + count])

    def _order_of(self, epoch: int) -> np.ndarray:
        file = None if self.folder is None else self.folder / f"order-{self.seed}-{epoch}.npy"
        if file is not None and file.exists():
            return np.load(file, mmap_mode="r")
        rng = np.random.default_rng([self.seed, 1, zlib.crc32(self.name.encode()), epoch])
        order_R = spread_order(self.groups, rng)
        if self.folder is None or file is None:
            return order_R
        for earlier in self.folder.glob(ORDERS):
            earlier.unlink()
        return keep_array(order_R, file)
