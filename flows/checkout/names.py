"""What this checkout is called on a Prefect server that others may use as well."""

import hashlib
import os
import re
import socket
from pathlib import Path

GIVEN = "SAMOVAR_CHECKOUT"
OURS = "samovar"
"""Tag of every run of ours: what the server does by itself it does to these alone."""


def checkout_name(root: Path) -> str:
    """Of the work pool and the deployment: machine, folder, and six letters of the whole path.

    SAMOVAR_CHECKOUT gives another, for a container, whose machine is called otherwise every time,
    and for machines that take each other's runs.
    """
    given = os.environ.get(GIVEN)
    if given:
        return _plain(given)
    path = root.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:6]
    return _plain(f"{socket.gethostname()}-{path.name}-{digest}")


def run_tags(root: Path) -> list[str]:
    """The tags of a run of this checkout; the second is of this checkout alone."""
    return [OURS, f"checkout:{checkout_name(root)}"]


def _plain(name: str) -> str:
    """Names of Prefect allow neither slashes nor percent signs."""
    return re.sub(r"[^\w.-]+", "-", name)
