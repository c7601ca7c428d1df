"""Object storage: a local folder or an s3:// prefix behind the same few calls.

Credentials come from the environment only (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY); the address
of an S3 service other than AWS from store.endpoint_url.
"""

import contextlib
import errno
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem

from tasks.contract.stage import StageError, atomic_folder
from tasks.params.addresses import check_place, use_plain_requests

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
ATTEMPTS = 3
ROUNDS = 2
"""How often s3fs starts the attempts again: a service that hangs is given up after 3 minutes."""
PARTIAL = ".partial-"
PATTERN = re.compile(r"[*?\[]")
STALE_AFTER_S = 24 * 3600.0
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a write fails with where nothing more fits."""


@dataclass(frozen=True)
class Storage:
    """Files below one address; paths are relative to it and use `/`."""

    url: str
    """A folder or s3://bucket/prefix."""
    endpoint_url: str | None
    """Address of an S3 service other than AWS."""

    def exists(self, path: str) -> bool:
        """Whether a file, or anything below a prefix, is stored under `path`."""
        with self._errors_explained(path):
            filesystem, full = self._locate(path)
            return bool(filesystem.exists(full))

    def read_bytes(self, path: str) -> bytes:
        """Content of one file."""
        with self._errors_explained(path):
            filesystem, full = self._locate(path)
            # Bytes for one file; a dict only where the path is a pattern.
            return filesystem.cat_file(full)  # pyright: ignore[reportReturnType]

    def write_bytes(self, path: str, data: bytes) -> None:
        """Store one file, replacing an older one; no reader ever sees half of it."""
        with self._errors_explained(path):
            filesystem, full = self._locate(path)
            if isinstance(filesystem, LocalFileSystem):
                with _partial(Path(full)) as partial:
                    partial.write_bytes(data)
                    partial.replace(full)
            else:
                filesystem.pipe_file(full, data)

    def create(self, path: str, data: bytes) -> bool:
        """Store one file unless it exists; of several writers exactly one gets True."""
        with self._errors_explained(path):
            filesystem, full = self._locate(path)
            try:
                if isinstance(filesystem, LocalFileSystem):
                    with _partial(Path(full)) as partial:
                        partial.write_bytes(data)
                        # A hard link, unlike a rename, fails where the name is taken.
                        os.link(partial, full)
                else:
                    filesystem.pipe_file(full, data, mode="create")
            except OSError as error:
                if not _is_taken(error):
                    raise
                return False
            return True

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all files below `prefix`, sorted; empty where there are none."""
        with self._errors_explained(prefix):
            filesystem, root = self._locate("")
            _, full = self._locate(prefix)
            found = filesystem.find(full)
            paths = [PurePosixPath(path).relative_to(root) for path in found]
            return sorted(str(path) for path in paths if not path.name.startswith(PARTIAL))

    def upload_folder(self, local: Path, prefix: str) -> None:
        """Store every file of `local` below `prefix`, file by file in the order of their names.

        Raises:
            StageError: `local` is no folder or holds no file.
        """
        files = sorted(path for path in local.rglob("*") if path.is_file())
        if not files:
            raise StageError(f"{local} holds no file to upload: run the stage that writes it")
        for file in files:
            path = str(PurePosixPath(prefix) / file.relative_to(local).as_posix())
            with self._errors_explained(path):
                filesystem, full = self._locate(path)
                if isinstance(filesystem, LocalFileSystem):
                    with _partial(Path(full)) as partial:
                        shutil.copyfile(file, partial)
                        partial.replace(full)
                else:
                    filesystem.put_file(str(file), full)

    def download(self, path: str, local: Path) -> None:
        """Copy one file to `local`, whose folder is made."""
        with self._errors_explained(path):
            filesystem, full = self._locate(path)
            local.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(full, str(local))

    def download_folder(self, prefix: str, local: Path) -> None:
        """Copy every file below `prefix` to the folder `local`, which appears whole or not at all.

        Raises:
            StageError: Nothing is stored below `prefix`.
        """
        paths = self.list(prefix)
        if not paths:
            raise StageError(f"{self._address(prefix)} holds no files: check the path")
        with atomic_folder(local) as folder:
            for path in paths:
                self.download(path, folder / PurePosixPath(path).relative_to(prefix))

    def delete(self, prefix: str) -> None:
        """Remove a file, or everything below a prefix; nothing there is no error."""
        if PurePosixPath(prefix) == PurePosixPath():
            raise ValueError(f"refusing to delete all of {self.url}: name a path below it")
        with self._errors_explained(prefix):
            filesystem, full = self._locate(prefix)
            if filesystem.exists(full):
                filesystem.rm(full, recursive=True)

    def delete_starting(self, start: str) -> int:
        """Remove all whose path starts with `start`, beginnings of uploads that died included.

        Returns:
            How many files there were.
        """
        folder = str(PurePosixPath(start).parent)
        with self._errors_explained(start):
            filesystem, above = self._locate(folder)
            _, full = self._locate(start)
            entries = filesystem.ls(above, detail=False) if filesystem.exists(above) else []
            found = [entry for entry in entries if str(entry).startswith(full)]
            count = sum(len(filesystem.find(entry)) for entry in found)
            for entry in found:
                filesystem.rm(entry, recursive=True)
            return count

    def _locate(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, root = open_filesystem(self.url, self.endpoint_url)
        if PurePosixPath(path) == PurePosixPath():
            return filesystem, root
        return filesystem, f"{root.rstrip('/')}/{inner_path(path, f'the store {self.url}')}"

    def _address(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"

    @contextlib.contextmanager
    def _errors_explained(self, path: str) -> Iterator[None]:
        with storage_errors(self._address(path), self.endpoint_url):
            yield


def inner_path(name: object, where: str) -> PurePosixPath:
    """A name that came from outside as a path that stays below the folder it is put into.

    Args:
        name: As a listing, a manifest or another file of the store or of a data set has it.
        where: What names it, for the message.

    Raises:
        StageError: It is no text, empty, absolute, an address, holds a NUL or leads out by `..`.
    """
    is_plain = isinstance(name, str) and "\0" not in name and "://" not in name
    path = PurePosixPath(str(name) if is_plain else "")
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise StageError(
            f"{where} names {name!r}: expected a path relative to it, without '..'; nothing is "
            "read or written there"
        )
    return path


def open_storage(url: str, endpoint_url: str | None) -> Storage:
    """Storage at a folder or an s3:// address; nothing is read or written yet.

    Raises:
        StageError: The address has another scheme, no bucket, or holds keys.
    """
    try:
        return Storage(check_place(url), endpoint_url)
    except ValueError as error:
        raise StageError(f"the address of a store: {error}") from error


def open_filesystem(url: str, endpoint_url: str | None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of an address, and the path in it; local paths become absolute."""
    if not url.startswith("s3://"):
        return fsspec.core.url_to_fs(url)
    use_plain_requests()
    filesystem, path = fsspec.core.url_to_fs(
        url,
        endpoint_url=endpoint_url,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"max_attempts": ATTEMPTS, "mode": "standard"},
        },
    )
    filesystem.retries = ROUNDS  # pyright: ignore[reportAttributeAccessIssue]  # of s3fs
    return filesystem, path


def fixed_folder(filesystem: fsspec.AbstractFileSystem, full: str) -> PurePosixPath:
    """The folder above the first part that is a pattern, or above the file.

    A part that looks like a pattern but exists under that very name is none.
    """
    path = PurePosixPath(full)
    for above in reversed(path.parents):
        if PATTERN.search(above.name) and not filesystem.exists(str(above)):
            return above.parent
    return path.parent


def matching(filesystem: fsspec.AbstractFileSystem, full: str) -> list[str]:
    """The file or folder of this path, or all that match its pattern; sorted, perhaps none."""
    if filesystem.exists(full):
        return [full]
    fixed = fixed_folder(filesystem, full)
    pattern = str(PurePosixPath(full).relative_to(fixed))
    if not PATTERN.search(pattern):
        return []
    found = filesystem.glob(f"{glob.escape(str(fixed))}/{pattern}")
    return sorted(str(path) for path in found)


@contextlib.contextmanager
def storage_errors(address: str, endpoint_url: str | None) -> Iterator[None]:
    """Turn the errors of access to `address` into a StageError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise StageError(f"{address} does not exist: check the path and the bucket") from error
    except PermissionError as error:
        raise StageError(
            f"access to {address} was refused ({error.__cause__ or error}): check "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the rights of the folder"
        ) from error
    except BotoCoreError as error:
        raise StageError(
            f"cannot reach {endpoint_url or 'AWS S3'} for {address} ({error}): check "
            "store.endpoint_url, the network and the AWS_* credentials"
        ) from error
    except OSError as error:
        if error.errno in FULL:
            raise StageError(
                f"the disk is full, copying {address} ({error}): free space, or raise the quota, "
                "and run again"
            ) from error
        if not address.startswith("s3://"):
            raise
        raise StageError(f"S3 failed on {address}: {error.__cause__ or error}") from error


def _is_taken(error: OSError) -> bool:
    """Whether a create-once write failed because the name exists."""
    # Ceph answers without the words that s3fs knows; the S3 code of both is the same.
    cause = error.__cause__
    code = cause.response.get("Error", {}).get("Code") if isinstance(cause, ClientError) else None
    taken = {"PreconditionFailed", "ConditionalRequestConflict"}
    return isinstance(error, FileExistsError) or code in taken


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Yield a name beside `target` that is gone at the end unless it was renamed.

    Such names of processes that were killed go after a day: no upload of one file lasts as long.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - stale.stat().st_mtime > STALE_AFTER_S:
                stale.unlink()
    partial = target.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
