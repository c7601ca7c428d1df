"""Why a stage ended, in words, read from the end of what it and DVC wrote."""

import re
import signal
from collections.abc import Sequence

FAILED = re.compile(r"^(\S.* failed with status .*); its last lines:$", re.MULTILINE)
"""The head of the message about a stage that failed; below it stand its last lines."""
DVC_END = "ERROR: failed to reproduce"
"""What DVC adds below the lines of a stage that failed."""
EXITED = re.compile(r"exited with (-?\d+)")
"""How DVC tells the status of a stage's command."""
SHELL_BASE = 128
"""A shell adds it to the number of the signal that ended its command."""

SIGNALS = {
    signal.SIGKILL: "it was killed (SIGKILL), mostly by the kernel or the container when memory "
    "ran out: give it more, or lower micro_batch_tokens and compute.threads",
    signal.SIGTERM: "it was told to end (SIGTERM): the next run goes on from its last checkpoint",
    signal.SIGSEGV: "it crashed (SIGSEGV) in compiled code: are the packages those of "
    "requirements.lock? `make check` says",
    signal.SIGBUS: "it crashed (SIGBUS): mostly a file in memory that was cut short, or a full "
    "/dev/shm",
}
TEXTS = {
    r"CUDA out of memory|torch\.OutOfMemoryError": "the memory of the GPU ran out: lower "
    "micro_batch_tokens or batch_tokens, or set micro_batch_tokens to auto",
    r"\bMemoryError\b|Cannot allocate memory|DefaultCPUAllocator: (can't|not enough)": "memory ran "
    "out: lower micro_batch_tokens or batch_tokens, or give it more",
    r"No space left on device|[Dd]isk quota exceeded|the disk is full": "the disk is full: free "
    "space and run again, what is finished stays",
}
"""Patterns of last lines that say no more by themselves, the surest first."""


def cause_of(message: str) -> str:
    """Why a run failed, whole, in one line: of each stage its reason, or the last line it wrote."""
    parts = FAILED.split(message)
    if len(parts) == 1:
        return " ".join(message.split())
    return "; ".join(map(_cause_of_stage, parts[1::2], parts[2::2]))


def _cause_of_stage(head: str, rest: str) -> str:
    if ", " in head:  # a reason follows the status
        return head
    lines = [line.strip() for line in rest.split("\n\n")[0].splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(DVC_END)]
    return f"{head}: {own[-1]}" if own else head


def reason_of(lines: Sequence[str]) -> str | None:
    """What ended a failed stage and what to do; None where its own last lines have to say it."""
    text = "\n".join(lines)
    for pattern, reason in TEXTS.items():
        if re.search(pattern, text):
            return reason
    statuses = EXITED.findall(text)
    if not statuses:
        return None
    status = int(statuses[-1])
    number = -status if status < 0 else status - SHELL_BASE
    return next((reason for sign, reason in SIGNALS.items() if sign == number), None)
