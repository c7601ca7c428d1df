"""A decoder of the Hugging Face hub, at one commit, every file checked by the hash it has there."""

import hashlib
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects

from infra.base.errors import BaseError
from infra.base.files import BLOCK_BYTES, remove_others, sha256
from model.backbone.provenance import NOTICE_PATTERNS

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.md", *NOTICE_PATTERNS]


def fetch_hub(source: str, revision: str | None, cache: Path) -> tuple[Path, str]:
    """The files of a model that make a decoder, its card and its terms.

    An interrupted fetch goes on; what is here of another model or commit is checked as all is.

    Args:
        source: Id of the model.
        revision: Commit, tag or branch; None is the newest.
        cache: Keeps the files.

    Returns:
        Folder of the files, and the commit they are of.

    Raises:
        BaseError: The hub cannot be reached, has no such model or revision, or what it sent
            differs from the hashes it gives.
    """
    folder = cache / "hub"
    try:
        api = HfApi()
        commit = str(api.model_info(source, revision=revision).sha)  # none is no revision either
        entries = api.list_repo_tree(source, recursive=True, revision=commit)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        wanted = list(
            filter_repo_objects(files, allow_patterns=PATTERNS, key=lambda file: file.path)
        )
        # a commit, not a name: without it a hub that is out of reach makes a partial folder whole
        snapshot_download(
            source, revision=commit, local_dir=folder, allow_patterns=PATTERNS, max_workers=2
        )
    except (HTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BaseError(
            f"the hub model {source!r} cannot be fetched ({reason}): check the id, the revision "
            "and the connection; a gated model needs HF_TOKEN"
        ) from error
    damaged = [file.path for file in wanted if not _is_as_on_the_hub(folder / file.path, file)]
    for name in damaged:
        (folder / name).unlink(missing_ok=True)
    if damaged:
        raise BaseError(
            f"{', '.join(damaged)} of {source} differs from the hash that the hub gives, and was "
            "removed: say the same again"
        )
    remove_others(folder, {file.path for file in wanted})
    return folder, commit


def _is_as_on_the_hub(path: Path, file: RepoFile) -> bool:
    if not path.is_file():
        return False
    if file.lfs is not None:
        return sha256(path) == file.lfs.sha256
    return _git_blob_sha1(path) == file.blob_id


def _git_blob_sha1(path: Path) -> str:
    """The name that git gives to a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
