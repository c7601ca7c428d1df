"""Which rows of which sources a step takes, for each way to compose its batch.

Both ways are functions of the step: what was asked before does not matter.

Shape letters: S = steps, K = sub-batches of a step, N = sources.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.training.data.order import SourceOrder, draw_sources, source_shares
from model.training.settings import TrainingSource, TrainSettings


@dataclass(frozen=True)
class Draw:
    """Rows of one source."""

    source: int
    """Its number."""
    rows: np.ndarray


class Composition(Protocol):
    """The rows of every step."""

    def draws(self, step: int) -> list[Draw]:
        """Rows of step `step`, counted from 1."""
        ...


class SubBatches:
    """Sub-batches of one source each; a batch of one source is a step with one of them."""

    def __init__(self, orders: list[SourceOrder], source_SK: np.ndarray) -> None:
        """Take the order of each source, and the source of each sub-batch of each step."""
        self._orders = orders
        self._source_X = source_SK.ravel()
        self._per_step = source_SK.shape[1]

    def draws(self, step: int) -> list[Draw]:
        """One draw per sub-batch."""
        first = (step - 1) * self._per_step
        return [self._draw(place) for place in range(first, first + self._per_step)]

    def _draw(self, place: int) -> Draw:
        number = int(self._source_X[place])
        visit = int((self._source_X[:place] == number).sum())
        return Draw(number, self._orders[number].rows_of_visit(visit))


class Mixture:
    """Rows of many sources in one batch; a source that has too few rows left begins anew."""

    def __init__(self, orders: list[SourceOrder], count_SN: np.ndarray) -> None:
        """Take the order of each source, and how many of its rows each step wants."""
        self._orders = orders
        rows_N = [len(order.groups) for order in orders]
        self._count_SN = np.minimum(count_SN, rows_N)
        walks = [
            _walk(count_S, rows) for count_S, rows in zip(self._count_SN.T, rows_N, strict=True)
        ]
        self._epoch_NS = np.stack([epoch_S for epoch_S, _ in walks])
        self._start_NS = np.stack([start_S for _, start_S in walks])

    def draws(self, step: int) -> list[Draw]:
        """One draw per source that has a row in the step."""
        place = step - 1
        return [
            Draw(
                number,
                self._orders[number].rows(
                    int(self._epoch_NS[number, place]), int(self._start_NS[number, place]), count
                ),
            )
            for number, count in enumerate(self._count_SN[place].tolist())
            if count
        ]


def _walk(count_S: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and first place of each step that takes `count_S` of the rows of a source.

    A step never reaches over the end of an epoch: what is left is left out, as by `SourceOrder`.
    """
    end_S = np.cumsum(count_S, dtype=np.int64)
    begin_S = end_S - count_S
    epoch_S, start_S = np.empty_like(end_S), np.empty_like(end_S)
    step = epoch = 0
    while step < len(end_S):
        last = int(np.searchsorted(end_S, begin_S[step] + rows, "right"))
        epoch_S[step:last] = epoch
        start_S[step:last] = begin_S[step:last] - begin_S[step]
        step, epoch = last, epoch + 1
    return epoch_S, start_S


def draw_steps(sources: list[TrainingSource], settings: TrainSettings) -> np.ndarray:
    """What each step takes, by the shares of the sources.

    Returns:
        (S, N) rows of each source for mixed batches, else (S, K) the source of each sub-batch.
    """
    rows = [source.table.num_rows for source in sources]
    weights = [source.weight for source in sources]
    if settings.batches == "mixed":
        share_N = source_shares(rows, weights, settings.source_temperature)
        rng = np.random.default_rng([settings.seed, 0])
        return rng.multinomial(settings.batch_size, share_N, size=settings.max_steps)
    drawn = draw_sources(
        rows,
        weights,
        temperature=settings.source_temperature,
        max_steps=settings.max_steps * settings.sub_batches,
        seed=settings.seed,
    )
    return drawn.reshape(settings.max_steps, settings.sub_batches)


def composition_of(
    orders: list[SourceOrder], steps_of: np.ndarray, settings: TrainSettings
) -> Composition:
    """The composition that reads `steps_of` as `draw_steps` made it; (S,) stands for (S, 1)."""
    if settings.batches == "mixed":
        return Mixture(orders, steps_of)
    return SubBatches(orders, steps_of.reshape(-1, settings.sub_batches))
