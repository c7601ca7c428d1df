"""outside.json: what stages read from where neither DVC nor git looks, by its contents.

Sources by an absolute path or an address, the folder or prefix of backbone.source, guides and
teachers. The file is kept in git and brought up to date before every run, and dvc.yaml names its
keys as parameters: other weights in the same folder run their stage again. A stage that somebody
starts by hand refuses what is not recorded.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable

import fsspec

from tasks.contract.stage import StageError, read_json, run_stage, write_json
from tasks.params.load import Params
from tasks.params.paths import OUTSIDE
from tasks.store.storage import fixed_folder, matching, open_filesystem, storage_errors

UNREAD = re.compile(r"(^|/)\.|\.md$")
"""Hidden files and descriptions, which no reader opens."""

logger = logging.getLogger(__name__)


def main() -> None:
    """Bring outside.json up to date."""
    run_stage("outside", refresh)


def refresh(params: Params) -> None:
    """Write outside.json; the file is not touched when it says the same already.

    Raises:
        StageError: Something is not where params.yaml says, or cannot be read.
    """
    content = look(params)
    before = read_json(OUTSIDE) if OUTSIDE.exists() else {}
    for stage, found in content.items():
        if found != before.get(stage, {}):
            logger.info("%s reads other files than before: %s", stage, ", ".join(found) or "none")
    if before != content:
        write_json(OUTSIDE, content)


def look(params: Params) -> dict[str, dict[str, str]]:
    """What outside.json has to say: stage to what it reads to its fingerprint.

    Raises:
        StageError: Something is not where params.yaml says, or cannot be read.
    """
    return {stage: _look_at(params, stage) for stage in params.outside()}


def recorded(stage: str, body: Callable[[Params], None]) -> Callable[[Params], None]:
    """`body`, once what it reads from outside is found to be what outside.json records."""

    def checked(params: Params) -> None:
        if os.environ.get("RANK", "0") == "0":  # the leading process looks for all
            require_recorded(params, stage)
        body(params)

    return checked


def require_recorded(params: Params, stage: str) -> None:
    """Nothing is read of which DVC would record another state.

    Raises:
        StageError: Something was changed, or moved, since outside.json was written.
    """
    known = (read_json(OUTSIDE) if OUTSIDE.exists() else {}).get(stage, {})
    found = _look_at(params, stage)
    differing = sorted(name for name in known | found if known.get(name) != found.get(name))
    if differing:
        raise StageError(
            f"{', '.join(differing)} differs from what {OUTSIDE} records for {stage}, so DVC would "
            "not know what was read: run python -m tasks.outside, then this again"
        )


def _look_at(params: Params, stage: str) -> dict[str, str]:
    endpoint_url = params.store.endpoint_url
    addresses = params.outside()[stage].values()
    return {address: fingerprint(address, endpoint_url) for address in addresses}


def fingerprint(address: str, endpoint_url: str | None) -> str:
    """Hash over the names and contents of a file, a folder or all that a glob matches.

    Objects of a bucket stand for themselves by the ETag that it gives them.

    Raises:
        StageError: Nothing is there, or it cannot be read.
    """
    with storage_errors(address, endpoint_url):
        filesystem, path = open_filesystem(address, endpoint_url)
        found = matching(filesystem, path)
        files = sorted({str(file) for each in found for file in filesystem.find(each)})
        root = f"{fixed_folder(filesystem, path)}/"
        lines = [
            f"{_mark(filesystem, file)}  {file.removeprefix(root)}\n"
            for file in files
            if not UNREAD.search(file.removeprefix(root))
        ]
    if not lines:
        raise StageError(f"nothing is at {address}: correct the path in params.yaml")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _mark(filesystem: fsspec.AbstractFileSystem, file: str) -> str:
    etag = filesystem.info(file).get("ETag")
    if etag is not None:
        return str(etag)
    with filesystem.open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]  # opened "rb"


if __name__ == "__main__":
    main()
