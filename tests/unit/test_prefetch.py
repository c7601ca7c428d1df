"""Results made ahead: the same, in bounded number, with their errors, and no thread left behind."""

import threading
from collections.abc import Iterator

import pytest

from model.training.data.prefetch import Prefetch


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not threads()


def test_results_are_those_of_the_function_whatever_is_asked() -> None:
    with Prefetch(lambda step: step * step, last_step=9, depth=3) as ahead:
        assert [ahead.get(step) for step in (1, 2, 2, 3, 7, 8, 9, 4)] == [
            1, 4, 4, 9, 49, 64, 81, 16,
        ]  # fmt: skip


def test_steps_are_made_once_in_order_and_none_after_the_last() -> None:
    made: list[int] = []
    with Prefetch(made.append, last_step=6, depth=2) as ahead:
        for step in range(1, 7):
            ahead.get(step)
            ahead.get(step)
    assert made == [1, 2, 3, 4, 5, 6]


def test_the_next_result_is_made_while_this_one_is_used_and_no_more_than_depth() -> None:
    """The thread is let through step by step; nobody asks for what it makes."""
    made = [threading.Event() for _ in range(9)]
    with Prefetch(lambda step: made[step].set(), last_step=8, depth=2) as ahead:
        ahead.get(1)
        assert made[2].wait(10)
        assert made[3].wait(10)
        ahead.get(1)
        assert not made[4].is_set()


def fail_at_three(step: int) -> int:
    if step == 3:
        raise ValueError("row 17 has no positive")
    return step


def test_an_error_is_raised_when_its_step_is_asked_for() -> None:
    with Prefetch(fail_at_three, last_step=9, depth=4) as ahead:
        assert [ahead.get(step) for step in (1, 2)] == [1, 2]
        with pytest.raises(ValueError, match="row 17 has no positive"):
            ahead.get(3)
        assert ahead.get(4) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_with_the_training_however_it_ends(error: type[BaseException]) -> None:
    made: list[int] = []

    def die() -> None:
        with Prefetch(made.append, last_step=10**6, depth=500) as ahead:
            ahead.get(1)
            assert threads()
            raise error

    with pytest.raises(error):
        die()
    assert not threads()
    assert len(made) <= 501
