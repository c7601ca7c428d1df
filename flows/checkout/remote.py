"""Points DVC's remote at `store.url` of params.yaml, through .dvc/config.local.

config.local is git-ignored, so the address of a bucket stays out of the repository; keys never
enter any file, DVC takes them from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import os
from pathlib import Path
from typing import Any

from dvc.config import Config, ConfigError

from flows.errors import FlowError
from tasks.params.load import Store, load_params

REMOTE = "store"
FOLDER = "dvc"
"""Below store.url, beside the published models."""


def use_remote(root: Path, store: Store) -> str:
    """Make the remote `store` of the repository at `root` the folder dvc of `store.url`.

    Other settings of config.local stay as they are. A dependency such as s3://bucket/corpus is no
    part of the remote: DVC finds its service, if that is not AWS, by AWS_ENDPOINT_URL alone, which
    is set here for this process and those it starts.

    Returns:
        The address.

    Raises:
        FlowError: The DVC configuration cannot be read or would not be valid.
    """
    wanted = {"url": _address(root, store.url)}
    if store.endpoint_url is not None and "://" in store.url:
        wanted["endpointurl"] = store.endpoint_url
    try:
        config = Config(str(root / ".dvc"), validate=False)
        with config.edit("local") as local:
            _set_remote(local, wanted)
    except ConfigError as error:
        raise FlowError(f"the DVC remote cannot be set to {wanted['url']}: {error}") from error
    if store.endpoint_url is not None:
        os.environ["AWS_ENDPOINT_URL"] = store.endpoint_url
    return wanted["url"]


def refusal_hint() -> str:
    """What to look at when the store of params.yaml refuses."""
    store = load_params().store
    return (
        f"the store {store.url} at {store.endpoint_url or 'AWS S3'} refuses: check that "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys) "
        "are set for this run and may write there, and that store.url in params.yaml names a "
        "bucket that exists; then run again, nothing is recomputed"
    )


def _set_remote(local: Any, wanted: dict[str, str]) -> None:  # noqa: ANN401 - DVC's, untyped
    entry = local.setdefault("remote", {}).setdefault(REMOTE, {})
    entry.pop("endpointurl", None)
    entry.update(wanted)


def _address(root: Path, url: str) -> str:
    if "://" in url:
        return f"{url.rstrip('/')}/{FOLDER}"
    return str((root / url / FOLDER).resolve())
