"""Whether the end of a run could be written here, asked before its beginning."""

from pathlib import Path

import yaml

from flows.checkout.record import Git
from flows.errors import FlowError
from tasks.params.load import Params, Record
from tasks.params.paths import ARTIFACTS


def check_fit(root: Path, record: Record) -> None:
    """See that DVC can keep the outputs and git the version.

    Raises:
        FlowError: `artifacts` is a link, or git cannot be used in this checkout.
    """
    if (root / ARTIFACTS).is_symlink():
        raise FlowError(
            f"{ARTIFACTS} is a symbolic link, and DVC keeps no outputs behind one: remove the link "
            "and mount the other disk there, or clone the project onto it"
        )
    if record.branch is not None:
        Git(root)


def reproduction_doubts(root: Path, params: Params) -> list[str]:
    """Why another checkout may not get the data or the outputs of a version, in sentences."""
    doubts = [
        f"{key} is {address}, outside this checkout: no other one can have a version again that "
        "was trained on what lies there. Put it under data/, or `dvc import-url` it beside that"
        for key, address in params.out_of_reach().items()
    ]
    moved = None if params.record.branch is None else _moved_store(Git(root), params)
    return doubts if moved is None else [*doubts, moved]


def _moved_store(git: Git, params: Params) -> str | None:
    """That the newest version was kept in another store than the next one will be."""
    pattern = f"refs/tags/{params.publish.name}/v*"
    options = ("--sort=-creatordate", "--count=1", "--format=%(refname:short)")
    tag = git.run("for-each-ref", *options, pattern)
    text = git.run("show", f"{tag}:params.yaml", may_fail=True) if tag else ""
    content = yaml.safe_load(text) if text else None
    then = (content or {}).get("store", {}).get("url")
    if then in {None, params.store.url}:
        return None
    return (
        f"tag {tag} and those before it fetch their outputs from {then}, while store.url is "
        f"{params.store.url}: keep the old store, or such a checkout finds nothing to pull"
    )
