"""A training of two processes: the second gives up while the first waits where nothing reaches it.

So it is on GPUs, where the first would be in a collective of NCCL.
"""

import logging
import os
import threading
from pathlib import Path

import torch

from tasks.params.load import load_params
from tasks.training import team as module

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"


def main() -> None:
    """Never returns."""
    logging.basicConfig()
    module.GRACE_S = 1.0
    compute = load_params(PROFILE).compute.model_copy(update={"processes": 2})
    with module.joined_team(compute, torch.device("cpu")) as (team, _):
        if not team.leads:
            os._exit(3)
        threading.Event().wait()


if __name__ == "__main__":
    main()
