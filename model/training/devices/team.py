"""Several processes, one batch: each embeds a share of the texts and scores a share of the rows.

Every process knows the whole batch, since drawing it is deterministic, so only numbers travel:
embeddings, their gradient, and the gradient of the weights, each added up over the processes. No
collective is part of a graph, and masks, Matryoshka sizes and GradCache need not know that there
are others: loss and gradient are those of one process with the whole batch.

Shape letters: M = texts of the batch, D = embedding size.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Result = TypeVar("Result")
FLAT_NUMBERS = 64 * 1024 * 1024
"""Numbers of gradient that are added up in one message."""


class TeamOutOfMemoryError(torch.OutOfMemoryError):
    """A process ran out of memory, and every process of the team knows."""


class Team:
    """The processes of a training; without torch.distributed a team of one."""

    def __init__(self, *, shares_weights: bool = False) -> None:
        """Find out who and how many; `torch.distributed` is initialised by the caller.

        With `shares_weights` the passes of a model hold collectives of their own.
        """
        self.shares_weights = shares_weights
        is_alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if is_alone else dist.get_rank()
        self.size = 1 if is_alone else dist.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def texts(self, lengths: Sequence[int]) -> list[int]:
        """Texts of this process, rising; longest texts are dealt out first, back and forth.

        Raises:
            ValueError: There are fewer texts than processes.
        """
        order = sorted(range(len(lengths)), key=lambda text: (-lengths[text], text))
        round_trip = [*range(self.size), *reversed(range(self.size))]
        mine = [
            text
            for place, text in enumerate(order)
            if round_trip[place % len(round_trip)] == self.rank
        ]
        if not mine:
            raise ValueError(
                f"a batch of {len(lengths)} texts leaves none for process {self.rank} of "
                f"{self.size}: use fewer processes, or a larger batch_size"
            )
        return sorted(mine)

    def gather(self, embedding: Tensor, texts: Sequence[int], num_texts: int) -> Tensor:
        """Embeddings (M, D) of all texts, from those of this process, without a graph."""
        if self.size == 1:
            return embedding.detach()

        def own_rows() -> Tensor:
            every_MD = embedding.new_zeros((num_texts, embedding.shape[1]))
            every_MD[torch.tensor(texts, device=embedding.device)] = embedding.detach()
            return every_MD

        return self.add_up(self.together(own_rows))

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of all parameters; a process without texts adds zeros.

        Those of sharded parameters have been added up as they were made.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for gradient in self.together(lambda: _whole_gradients(parameters)):
            bucket.append(gradient)
            if sum(gradient.numel() for gradient in bucket) >= FLAT_NUMBERS:
                self._add_up_flat(bucket)
                bucket = []
        if bucket:
            self._add_up_flat(bucket)

    def _add_up_flat(self, gradients: list[Tensor]) -> None:
        flat = self.add_up(self.together(lambda: _flat(gradients)))
        slices = flat.split([gradient.numel() for gradient in gradients])
        for gradient, own in zip(gradients, slices, strict=True):
            gradient.copy_(own.view_as(gradient))

    def together(self, work: Callable[[], Result]) -> Result:
        """The result of `work`; out of memory on one process is so on all.

        Without it the others would wait for ever in the next collective for the one that gave up.
        Where processes share weights, `work` itself holds collectives and nothing can be agreed.

        Raises:
            TeamOutOfMemoryError: On every process alike.
        """
        if self.size == 1 or self.shares_weights:
            return work()
        results: list[Result] = []
        with contextlib.suppress(torch.OutOfMemoryError):
            results.append(work())
        if self.any(not results):
            raise TeamOutOfMemoryError("a process of this training is out of memory")
        return results[0]

    def agrees_on(self, error: torch.OutOfMemoryError) -> bool:
        """Whether every process is out of memory at the same place and may try again.

        One that tried again alone would wait for the others in another collective than they for it.
        """
        if self.shares_weights:
            return False
        return self.size == 1 or isinstance(error, TeamOutOfMemoryError)

    def most(self, number: int) -> int:
        """The largest number of any process."""
        return -self.least(-number)

    def least(self, number: int) -> int:
        """The smallest number of any process."""
        own = torch.tensor(-number, device=self._device)
        if self.size > 1:
            dist.all_reduce(own, dist.ReduceOp.MAX)
        return -int(own.item())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.size == 1:
            return flag
        return bool(self.add_up(torch.tensor(int(flag), device=self._device)).item())

    def check_same(self, number: int, what: str) -> None:
        """Make sure that every process has this number.

        Raises:
            ValueError: On every process alike, when they differ.
        """
        own = torch.tensor([number, -number], device=self._device)
        if self.size > 1:
            dist.all_reduce(own, dist.ReduceOp.MAX)
        largest, smallest = own[0].item(), -own[1].item()
        if largest != smallest:
            raise ValueError(
                f"the processes of this training disagree on {what}: {smallest} and {largest}; "
                "remove the checkpoints of the stage below .samovar/checkpoints and run it again"
            )

    @property
    def _device(self) -> str:
        """Where tensors that are added up must lie."""
        is_nccl = self.size > 1 and dist.get_backend() == "nccl"
        return "cuda" if is_nccl else "cpu"

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


def _whole_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """Gradients of all parameters that are not sharded, zeros where there are none."""
    gradients: list[Tensor] = []
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])
