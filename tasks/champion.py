"""champion.json: the published model that the gate compares the candidate with.

The file is kept in git as an input of the gate. It names the newest published version other than
the candidate itself, so that a run repeated after its own publication decides the same again.
"""

import logging
from pathlib import Path
from typing import Any

from tasks.contract.stage import read_json, run_stage, write_json
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.store.registry import Registry, Version, fingerprint_folder
from tasks.store.storage import open_storage

CHAMPION_FILE = Path("champion.json")

logger = logging.getLogger(__name__)


def main() -> None:
    """Refresh champion.json from the registry."""
    run_stage("champion", refresh_champion)


def refresh_champion(params: Params) -> None:
    """Write champion.json; the file is not touched when it says the same already.

    Raises:
        StageError: The registry cannot be read.
    """
    registry = Registry(
        open_storage(params.store.url, params.store.endpoint_url), params.publish.name
    )
    candidate = candidate_fingerprint(ARTIFACTS / params.publish.checkpoint)
    others = [each for each in registry.versions() if each.fingerprint != candidate]
    content = _describe(others[-1] if others else None)
    if not CHAMPION_FILE.exists() or read_json(CHAMPION_FILE) != content:
        write_json(CHAMPION_FILE, content)
    logger.info("champion of %s: %s", registry.name, content["version"] or "none yet")


def candidate_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the candidate's folder; None before the first run has written it."""
    return fingerprint_folder(folder) if folder.is_dir() else None


def _describe(version: Version | None) -> dict[str, Any]:
    if version is None:
        return {"version": None, "fingerprint": None, "mean": None, "scores": {}}
    return {
        "version": version.version,
        "fingerprint": version.fingerprint,
        "mean": version.mean,
        "scores": version.scores,
    }


if __name__ == "__main__":
    main()
