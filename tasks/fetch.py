"""Fetches a published model: `python -m tasks.fetch`, the newest; every file against its hash.

The folder that it leaves holds what the manifest of the version names and nothing else, so a file
that was changed in the store, or put beside the others, is never loaded.
"""

import argparse
import logging
import sys
from pathlib import Path

from tasks.contract.stage import StageError
from tasks.params.load import ParamsError, load_params
from tasks.store.registry import Registry
from tasks.store.storage import open_storage

logger = logging.getLogger(__name__)


def main() -> None:
    """Download one version into a folder, which appears whole or not at all."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.fetch",
        description="Fetch a published model from store.url of params.yaml and verify its hashes.",
    )
    parser.add_argument(
        "version", nargs="?", help="such as v0007-1a2b3c4d or v0007; the newest if none is named"
    )
    parser.add_argument("--name", help="of the model; publish.name of params.yaml if not given")
    parser.add_argument("--to", type=Path, help="folder that must not exist yet; models/VERSION")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        params = load_params()
        storage = open_storage(params.store.url, params.store.endpoint_url)
        folder = fetch(
            Registry(storage, chosen.name or params.publish.name), chosen.version, chosen.to
        )
    except (StageError, ParamsError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"{folder}\n")


def fetch(registry: Registry, name: str | None, target: Path | None) -> Path:
    """Download the version called `name`, or the newest, and verify it.

    Args:
        registry: Where it is published.
        name: Its whole name, or the number alone (`v0007`); the newest where None.
        target: The folder to make; `models/VERSION` where None.

    Returns:
        The folder.

    Raises:
        StageError: No such version, the folder exists, a file is missing or is not the published
            one, or the store cannot be used.
    """
    known = registry.versions()
    chosen = [each for each in known if name in {None, each.version, each.version.split("-")[0]}]
    if not chosen:
        names = ", ".join(each.version for each in known) or "none yet"
        asked = f"no version {name}" if name else "no version"
        raise StageError(f"{registry.name} has {asked}; published: {names}")
    version = chosen[-1]
    folder = target or Path("models") / version.version
    if folder.exists():
        raise StageError(f"{folder} exists: name another folder by --to, or remove it")
    registry.download(version, folder)
    logger.info("%s: %d files, each as it was published", version.version, len(version.files))
    return folder


if __name__ == "__main__":
    main()
