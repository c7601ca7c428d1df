"""Published models in object storage: numbered versions that appear whole or not at all.

    registry/<name>/claims/v0007                              who takes the number; created once
    registry/<name>/versions/v0007-<fingerprint>/...          the files of the model
    registry/<name>/versions/v0007-<fingerprint>/manifest.json    written last: the commit marker
    registry/<name>/champion.json                             the newest version, for other readers

A version without manifest.json does not exist for any reader. Removing the manifest withdraws a
version; a later publication clears away what is left of it.
"""

import hashlib
import json
import logging
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.contract.stage import StageError, atomic_folder
from tasks.store.storage import Storage, inner_path, open_filesystem, storage_errors

MANIFEST = "manifest.json"
MODULES = "modules.json"
"""Where sentence-transformers reads which folders of a model to load."""
WITHDRAW = (
    f"remove {MANIFEST} to withdraw the version, or restore what was published from a backup"
)
ABANDONED_AFTER = timedelta(hours=24)
"""Age of a claim without a manifest at which its publisher counts as dead."""

_MANIFEST_PATH = re.compile(rf"versions/(v(\d+)-[0-9a-f]+)/{re.escape(MANIFEST)}")
_CLAIM = re.compile(r"v(\d+)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredFile:
    """One file of a version."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Version:
    """One published model, as its manifest describes it."""

    version: str
    """v0007-1a2b3c4d: a number, then the first eight digits of the fingerprint."""
    fingerprint: str
    """Of the model folder, by `fingerprint_folder`."""
    published_at: str
    """ISO 8601, UTC."""
    mean: float
    """Mean score of the evaluation, 0 to 1."""
    scores: dict[str, float]
    """Score per evaluation task, 0 to 1."""
    run: dict[str, str | None]
    """Where the model came from: hashes of params.yaml and dvc.lock, git commit."""
    files: list[StoredFile]


def hash_folder(folder: Path) -> list[StoredFile]:
    """Every file of a folder with its hash, sorted by path.

    Raises:
        StageError: The folder does not exist or holds no file.
    """
    files = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(StoredFile(path.relative_to(folder).as_posix(), sha256, path.stat().st_size))
    if not files:
        raise StageError(f"{folder} holds no model: run the stage that writes it (dvc repro)")
    return sorted(files, key=lambda file: file.path)


def fingerprint_folder(folder: Path) -> str:
    """sha256 over the paths and hashes of all files: equal only for equal folders.

    Raises:
        StageError: The folder does not exist or holds no file.
    """
    lines = (f"{file.sha256}  {file.path}\n" for file in hash_folder(folder))
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Registry:
    """The published versions of one model name."""

    storage: Storage
    name: str

    def address(self, version: str) -> str:
        """Full address of a version, for a person."""
        return f"{self.storage.url.rstrip('/')}/{self._folder(version)}"

    def versions(self) -> list[Version]:
        """Published versions, oldest first; an unfinished publication is none of them."""
        return [self.read(version) for _, version in sorted(self._committed())]

    def read(self, version: str) -> Version:
        """The manifest of one version.

        Raises:
            StageError: It is not published, or its manifest is broken.
        """
        data = self.storage.read_bytes(f"{self._folder(version)}/{MANIFEST}")
        manifest = f"{self.address(version)}/{MANIFEST}"
        try:
            content = json.loads(data)
            files = [StoredFile(**file) for file in content.pop("files")]
            found = Version(files=files, **content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StageError(
                f"{manifest} is no manifest of a published model ({error}): {WITHDRAW}"
            ) from error
        if found.version != version:
            raise StageError(
                f"{manifest} calls its version {found.version!r}, expected {version!r}, the name "
                f"of its folder: {WITHDRAW}"
            )
        for file in files:
            inner_path(file.path, manifest)
        return found

    def publish(
        self,
        folder: Path,
        *,
        fingerprint: str,
        mean: float,
        scores: dict[str, float],
        run: dict[str, str | None],
    ) -> tuple[Version, bool]:
        """Store `folder` as the next version.

        Args:
            folder: The model with all that is published beside it.
            fingerprint: Of the model alone; one that is published already is left as it is.
            mean: Mean of `scores`.
            scores: Score per evaluation task.
            run: Where the model came from.

        Returns:
            The version with this fingerprint, and whether this call published it.

        Raises:
            StageError: The store cannot be used, or the upload took longer than a claim lives.
        """
        version = self._published(fingerprint)
        is_new = version is None
        if version is None:
            self._clear_abandoned()
            number, token = self._claim()
            version = Version(
                version=f"{number}-{fingerprint[:8]}",
                fingerprint=fingerprint,
                published_at=_now().isoformat(timespec="seconds"),
                mean=mean,
                scores=scores,
                run=run,
                files=hash_folder(folder),
            )
            self._upload(folder, version, token=token)
        _, newest = max(self._committed())
        pointer = {"version": newest, "fingerprint": self.read(newest).fingerprint}
        self.storage.write_bytes(f"{self._root}/champion.json", _to_json(pointer))
        return version, is_new

    def download(self, version: Version, folder: Path) -> None:
        """Copy the files of the manifest, and no other, to `folder`, once each has its hash.

        Raises:
            StageError: A file is missing or is not the published one, or the store cannot be used.
        """
        with atomic_folder(folder) as partial:
            for file in version.files:
                path = f"{self._folder(version.version)}/{file.path}"
                self.storage.download(path, partial / file.path)
            changed = set(version.files).difference(hash_folder(partial))
            if changed:
                paths = ", ".join(sorted(file.path for file in changed))
                raise StageError(
                    f"{self.address(version.version)} is not as it was published: {paths} differ "
                    f"from {MANIFEST}. Do not load it; restore the files, or withdraw the "
                    "version by removing its manifest"
                )
            _check_modules(partial, self.address(version.version))

    def verify(self, version: str) -> list[str]:
        """Hash every stored file again: what is wrong, a sentence each; empty when all is well.

        Raises:
            StageError: The version is not published, or the store cannot be used.
        """
        faults = []
        files = self.read(version).files
        stored = set(self.storage.list(self._folder(version)))
        for file in files:
            path = f"{self._folder(version)}/{file.path}"
            if path not in stored:
                faults.append(f"{path} is missing")
            elif self._sha256(path) != file.sha256:
                faults.append(f"{path} differs from its hash in {MANIFEST}")
        return faults

    @property
    def _root(self) -> str:
        return f"registry/{self.name}"

    def _folder(self, version: str) -> str:
        return f"{self._root}/versions/{version}"

    def _committed(self) -> list[tuple[int, str]]:
        """Number and name of every version that has a manifest."""
        paths = (path.removeprefix(f"{self._root}/") for path in self.storage.list(self._root))
        found = (_MANIFEST_PATH.fullmatch(path) for path in paths)
        return [(int(match[2]), match[1]) for match in found if match]

    def _published(self, fingerprint: str) -> Version | None:
        return next((each for each in self.versions() if each.fingerprint == fingerprint), None)

    def _claim(self) -> tuple[str, str]:
        """Take the next number, which no other publisher can take; with the proof of it."""
        taken = [number for number, _ in (*self._claims(), *self._committed())]
        number = max(taken, default=0)
        token = uuid.uuid4().hex
        claim = _to_json({"token": token, "claimed_at": _now().isoformat()})
        while True:
            number += 1
            if self.storage.create(self._claim_path(number), claim):
                return f"v{number:04d}", token

    def _claims(self) -> list[tuple[int, str]]:
        """Number and path of every claim; what else lies among them is not ours."""
        paths = self.storage.list(f"{self._root}/claims")
        found = ((_CLAIM.fullmatch(path.rpartition("/")[2]), path) for path in paths)
        return [(int(match[1]), path) for match, path in found if match]

    def _claim_path(self, number: int) -> str:
        return f"{self._root}/claims/v{number:04d}"

    def _upload(self, folder: Path, version: Version, *, token: str) -> None:
        size_bytes = sum(file.size_bytes for file in version.files)
        logger.info(
            "uploading %d files, %.1f MB, to %s",
            len(version.files),
            size_bytes / 1e6,
            self.address(version.version),
        )
        self.storage.upload_folder(folder, self._folder(version.version))
        number = int(version.version[1:].partition("-")[0])
        claim = json.loads(self.storage.read_bytes(self._claim_path(number)))
        if claim["token"] != token:
            raise StageError(
                f"the upload of {version.version} outlived its claim of {ABANDONED_AFTER} and was "
                "cleared away by another publisher: publish again"
            )
        self.storage.write_bytes(
            f"{self._folder(version.version)}/{MANIFEST}", _to_json(asdict(version))
        )

    def _clear_abandoned(self) -> None:
        """Remove the files of old claims that never got a manifest; their numbers stay taken."""
        committed = {number for number, _ in self._committed()}
        for number, path in self._claims():
            claim = json.loads(self.storage.read_bytes(path))
            age = _now() - datetime.fromisoformat(claim["claimed_at"])
            if number in committed or claim["token"] is None or age < ABANDONED_AFTER:
                continue
            self.storage.write_bytes(path, _to_json({**claim, "token": None}))
            self._remove_unfinished(number)

    def _remove_unfinished(self, number: int) -> None:
        """Remove what was uploaded under a number; keys that may delete nothing leave it there."""
        try:
            removed = self.storage.delete_starting(f"{self._root}/versions/v{number:04d}-")
        except StageError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            logger.warning("the unfinished v%04d stays in the store: %s", number, error)
            return
        logger.info("removed %d files of the unfinished v%04d", removed, number)

    def _sha256(self, path: str) -> str:
        address = f"{self.storage.url.rstrip('/')}/{path}"
        with storage_errors(address, self.storage.endpoint_url):
            filesystem, root = open_filesystem(self.storage.url, self.storage.endpoint_url)
            with filesystem.open(f"{root.rstrip('/')}/{path}", "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")  # pyright: ignore[reportArgumentType]  # opened as bytes
        return digest.hexdigest()


def _check_modules(folder: Path, address: str) -> None:
    """See that modules.json, where there is one, sends no loader out of the folder."""
    if not (folder / MODULES).is_file():
        return
    try:
        paths = [module["path"] for module in json.loads((folder / MODULES).read_bytes())]
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(
            f"{address}/{MODULES} is broken ({error}), expected a list of modules with a path "
            f"each: {WITHDRAW}"
        ) from error
    for path in paths:
        if path != "":  # the model itself
            inner_path(path, f"{address}/{MODULES}")


def _now() -> datetime:
    return datetime.now(UTC)


def _to_json(content: Any) -> bytes:  # noqa: ANN401 - any JSON value
    text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("utf-8")
