"""Points DVC's remote at `store.url` of params.yaml, through .dvc/config.local.

config.local is git-ignored, so the address of a bucket stays out of the repository; keys never
enter any file, DVC takes them from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from configobj import ConfigObj, ConfigObjError
from dvc.config import Config, ConfigError, merge

from flows.errors import FlowError
from tasks.params.addresses import use_plain_requests
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
        _check_settings(root / ".dvc", wanted)
        _write_settings(root / ".dvc" / "config.local", wanted)
    except (ConfigError, ConfigObjError, ValueError, OSError) as error:
        raise FlowError(
            f"the DVC remote cannot be set to {wanted['url']}: {error}; correct .dvc/config.local"
        ) from error
    use_plain_requests()
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


def _check_settings(folder: Path, wanted: dict[str, str]) -> None:
    """See that DVC takes the settings of all levels with the remote among them."""
    config = Config(str(folder), validate=False)
    local: Any = config.load_one("local")
    _set_remote(local.setdefault("remote", {}).setdefault(REMOTE, {}), wanted)
    every = config.load_config_to_level("local")
    merge(every, local)
    Config.validate(every)


def _write_settings(path: Path, wanted: dict[str, str]) -> None:
    """Set the remote in a file of the user's, whose other lines and comments stay.

    Not by `Config.edit` of DVC, which reads UTF-8, writes ASCII, and has emptied the file by the
    time it finds that a path is in Cyrillic.
    """
    old = path.read_bytes() if path.exists() else b""
    settings = ConfigObj(BytesIO(old), encoding="utf-8", interpolation=False)
    _set_remote(settings.setdefault(f'remote "{REMOTE}"', {}), wanted)
    new = BytesIO()
    settings.write(new)
    if new.getvalue() == old:
        return
    # where git does not look, and for no more eyes than the file itself: it may hold passwords
    partial = path.parent / "tmp" / f"{path.name}.partial-{os.getpid()}"
    partial.parent.mkdir(exist_ok=True)
    try:
        partial.touch(mode=path.stat().st_mode & 0o777 if path.exists() else 0o666)
        partial.write_bytes(new.getvalue())
        partial.replace(path.resolve())
    finally:
        partial.unlink(missing_ok=True)


def _set_remote(entry: Any, wanted: dict[str, str]) -> None:  # noqa: ANN401 - untyped
    entry.pop("endpointurl", None)
    entry.update(wanted)


def _address(root: Path, url: str) -> str:
    if "://" in url:
        return f"{url.rstrip('/')}/{FOLDER}"
    return str((root / url / FOLDER).resolve())
