"""The terms of a loss, joined to one number and kept apart for the log."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.training.devices.team import Team


class LossTerms:
    """Sums the terms of a batch, share by share; every process must know their names."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """Begin with 0 for each name."""
        self._names = tuple(names)
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)

    def join(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The terms of one share added up in the order of the names, each one counted."""
        first, *rest = (terms[name] for name in self._names)
        self._sums += torch.stack([first, *rest]).detach().double()
        for term in rest:
            first = first + term
        return first

    def add_up(self, team: Team) -> None:
        """Make the sums those of the whole batch."""
        team.add_up(self._sums)

    def values(self) -> dict[str, float]:
        """Share of each term in the loss, weights included."""
        return dict(zip(self._names, self._sums.tolist(), strict=True))
