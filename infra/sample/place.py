"""Puts the sample corpus into `data/` of a checkout and has DVC record it: `make data`.

Only where `data/` is free or holds the sample, and `data.dvc` names no other data: corpora of
somebody's own, and what git records of them, are left as they are.
"""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tasks.params.paths import STATE

DATA, RECORD = Path("data"), Path("data.dvc")
PLACED = STATE / "sample.json"
"""Which code made the sample that lies here, and the hashes of every sample that has."""
CODE = Path(__file__).parent
PARTS = {"train", "benchmark"}
MOST_FILES = 1000
"""More are no sample, and are not hashed to find that out."""

logger = logging.getLogger(__name__)


class NotOursError(RuntimeError):
    """`data/` or `data.dvc` is somebody's own; the message says which and what to do."""


def place(generate: Callable[[Path], None]) -> None:
    """Bring `data/` and `data.dvc` of the current folder to the sample as the code makes it now.

    Args:
        generate: Writes the sample into a folder.

    Raises:
        NotOursError: They hold other data; nothing was changed.
    """
    placed = _read_placed()
    code, here, recorded = _code_hash(), tree_hash(DATA), _recorded_hash()
    if placed["code"] == code and here is not None and here == recorded == placed["trees"][-1]:
        logger.info("data/ holds the sample corpus")
        return
    fresh = STATE / "sample"
    shutil.rmtree(fresh, ignore_errors=True)
    generate(fresh)
    made = tree_hash(fresh)
    known = [*placed["trees"], made]
    _check_ours(here, recorded, known)
    # first: a killed process leaves data that the next one knows as a sample
    _write_placed({"code": None, "trees": known})
    if here != made:
        shutil.rmtree(DATA, ignore_errors=True)
        fresh.rename(DATA)
    shutil.rmtree(fresh, ignore_errors=True)
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(DATA)]
    subprocess.run(command, check=True)
    _write_placed({"code": code, "trees": [made]})
    if recorded != made:
        logger.warning("data.dvc now names another sample than before: commit it if that is meant")


def tree_hash(folder: Path) -> str | None:
    """What DVC would write into `data.dvc`; None for an empty folder, "" for what is no sample."""
    if folder.is_symlink():
        return ""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    files = []
    for path in folder.rglob("*"):
        if path.is_file():
            files.append(path)
        if len(files) > MOST_FILES:
            return ""
    if {each.name for each in folder.iterdir()} - PARTS:
        return ""
    entries = [
        {
            "md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
            "relpath": path.relative_to(folder).as_posix(),
        }
        for path in files
    ]
    text = json.dumps(sorted(entries, key=lambda each: each["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _check_ours(here: str | None, recorded: str | None, known: list[str | None]) -> None:
    if here is not None and here not in known:
        raise NotOursError(
            "data/ holds files that are not the sample corpus, and is left as it is: move it away "
            "(its record too: `dvc remove data.dvc`), or use the sample in another clone"
        )
    if recorded is not None and recorded not in known:
        raise NotOursError(
            "data.dvc does not name the sample corpus, and is left as it is: fetch what it names "
            "with `make pull`, or remove it (`dvc remove data.dvc`) to have the sample instead"
        )


def _recorded_hash() -> str | None:
    """The hash in `data.dvc`; None where there is no such file."""
    if not RECORD.is_file():
        return None
    outs = (yaml.safe_load(RECORD.read_text(encoding="utf-8")) or {}).get("outs", [])
    hashes = [str(out.get("md5")) for out in outs if out.get("path") == str(DATA)]
    return hashes[0].removesuffix(".dir") if hashes else ""


def _code_hash() -> str:
    names = sorted(path for path in CODE.rglob("*") if path.suffix in {".py", ".tsv", ".txt"})
    digest = hashlib.sha256()
    for path in names:
        digest.update(f"{path.relative_to(CODE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _read_placed() -> dict[str, Any]:
    if not PLACED.is_file():
        return {"code": None, "trees": []}
    return json.loads(PLACED.read_text(encoding="utf-8"))


def _write_placed(content: dict[str, Any]) -> None:
    PLACED.parent.mkdir(exist_ok=True)
    partial = PLACED.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.rename(PLACED)


def _generate(folder: Path) -> None:
    from infra.sample.generate import generate  # its dictionaries take a second to load

    logging.getLogger("pymorphy3").setLevel(logging.WARNING)
    generate(folder)


def main() -> None:
    """Place the sample; exit 1 where `data/` is somebody's own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--if-free", action="store_true", help="data of one's own are no error")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("infra.sample.generate").setLevel(logging.WARNING)
    try:
        place(_generate)
    except NotOursError as error:
        if not arguments.if_free:
            sys.exit(str(error))
        logger.info("%s", error)


if __name__ == "__main__":
    main()
