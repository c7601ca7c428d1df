"""Why a stage ended, from lines that DVC, Python and torch write."""

import pytest

from flows.show.reasons import reason_of

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
