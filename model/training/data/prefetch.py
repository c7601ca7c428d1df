"""Results of coming steps, made by a thread while the device works on this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Result = TypeVar("Result")


class Prefetch(Generic[Result]):
    """A function of the step, computed a bounded number of steps before it is asked for.

    One thread makes one result after the other, so a function that keeps a state is safe; it must
    not depend on which steps were asked for. A context manager that leaves no thread behind.
    """

    def __init__(self, make: Callable[[int], Result], last_step: int, depth: int) -> None:
        """Start no work yet.

        Args:
            make: The result of a step.
            last_step: No step after it is made.
            depth: Results that are held or in work beside the one asked for.
        """
        self._make = make
        self._last_step = last_step
        self._depth = depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._results: dict[int, Future[Result]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def get(self, step: int) -> Result:
        """The result of `step`; whatever `make` raised for it is raised here."""
        wanted = range(step, min(step + self._depth, self._last_step) + 1)
        for old in [made for made in self._results if made not in wanted]:
            self._results.pop(old).cancel()
        for coming in wanted:
            if coming not in self._results:
                self._results[coming] = self._thread.submit(self._make, coming)
        return self._results[step].result()
