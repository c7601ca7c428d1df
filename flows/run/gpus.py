"""Over how many GPUs the stages of a run may spread."""

import subprocess
import sys

from flows.terminal import say

SCRIPT = "tasks/machine/gpus/visible.py"
ANSWER_WAIT_S = 120.0
"""The driver takes seconds per GPU to start where nothing keeps it loaded."""


def count_gpus(device: str) -> int:
    """GPUs that CUDA shows here; 0 with `compute.device: cpu`, or where they cannot be listed.

    A stage that asks for GPUs lists them again, and stops if it cannot.
    """
    if device == "cpu":
        return 0
    command = [sys.executable, "-I", "-S", SCRIPT]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_WAIT_S, check=True
        )
    except subprocess.TimeoutExpired:
        say(f"the CUDA driver has not answered for {ANSWER_WAIT_S:.0f} s")
        return 0
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        say(f"the GPUs could not be listed: {reason}")
        return 0
    return len(answer.stdout.split())
