"""Why a stage ended, from lines that DVC, Python and torch write."""

import pytest

from flows.show.reasons import cause_of, reason_of

FAILED = (
    "ERROR: failed to reproduce 'finetune': failed to run: python -m tasks.finetune, exited with "
)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([FAILED + "-9"], "killed (SIGKILL), mostly by the kernel"),
        ([FAILED + "137"], "killed (SIGKILL), mostly by the kernel"),
        ([FAILED + "-15"], "told to end (SIGTERM)"),
        ([FAILED + "-11"], "crashed (SIGSEGV)"),
        (
            ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", FAILED + "1"],
            "the memory of the GPU ran out",
        ),
        (["MemoryError", FAILED + "1"], "memory ran out"),
        (
            ["RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"],
            "memory ran out",
        ),
        (["OSError: [Errno 28] No space left on device", FAILED + "1"], "the disk is full"),
        # of several the last: a stage that was killed may have printed another's status
        ([FAILED + "-15", FAILED + "-9"], "killed (SIGKILL)"),
    ],
)
def test_what_ended_a_stage_is_said_in_words(lines: list[str], words: str) -> None:
    found = reason_of(lines)
    assert found is not None
    assert words in found


@pytest.mark.parametrize("lines", [[], [FAILED + "1"], [FAILED + "3"], ["ERROR: no such column"]])
def test_a_stage_that_says_why_itself_gets_no_words_of_ours(lines: list[str]) -> None:
    assert reason_of(lines) is None


def failure(head: str, *lines: str) -> str:
    return "\n".join([f"{head}; its last lines:", *lines, "ERROR: failed to reproduce 'x': exited"])


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (
            failure("merge failed with status 1", "0 of 9", "no room"),
            "merge failed with status 1: no room",
        ),
        (
            failure("a@b failed with status 255, it was killed", "9 of 9"),
            "a@b failed with status 255, it was killed",
        ),
        ("push failed with status 3; its last lines:\n403", "push failed with status 3: 403"),
        (failure("merge failed with status 1"), "merge failed with status 1"),
        (
            "\n\n".join(
                [
                    failure("a failed with status 1", "no room"),
                    failure("b failed with status 2", "no light"),
                    "not run for that reason: c",
                ]
            ),
            "a failed with status 1: no room; b failed with status 2: no light",
        ),
        (
            "the run left stages out of date:\n  a: changed\n  b: changed",
            "the run left stages out of date: a: changed b: changed",
        ),
        ("", ""),
    ],
)
def test_the_cause_of_a_failure_is_one_whole_line(message: str, cause: str) -> None:
    assert cause_of(message) == cause
