"""Where a decoder comes from, under which licence, and the terms that go with every copy of it."""

import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from model.writing import writing

RECORD = "base.json"
"""Of a folder of infra.base with hashes, of an artifact without."""
NAMELESS = {"other", "unknown"}
"""What cards of the hub say in place of a licence."""
NOTICES = ("LICENSE", "LICENCE", "NOTICE", "TERMS", "GEMMA_TERMS", "USE_POLICY")
NOTICE_PATTERNS = [f"{case(name)}*" for name in NOTICES for case in (str.upper, str.lower)]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """What is known of a decoder that somebody else made."""

    origin: str
    """Id of the hub or address that it was fetched from, or the folder that was given."""
    licence: str | None = None
    """As cards of the hub name it: apache-2.0, gemma, ...; None is unknown."""
    notices: tuple[Path, ...] = ()
    """Terms and notices that every copy, changed or not, has to carry."""
    commit: str | None = None
    """Of a model of the hub."""

    def write(self, folder: Path) -> None:
        """Write the record and copies of the notices into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        with writing(folder):
            for notice in self.notices:
                shutil.copyfile(notice, folder / notice.name)
            content = {
                "origin": self.origin,
                "commit": self.commit,
                "licence": self.licence,
                "notices": sorted(notice.name for notice in self.notices),
            }
            text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
            (folder / RECORD).write_text(text, encoding="utf-8")


def is_notice(name: str) -> bool:
    """Whether a file is one that goes with every copy of the weights."""
    return Path(name).stem.upper().startswith(NOTICES)


def notices_in(folder: Path) -> tuple[Path, ...]:
    """The terms and notices in a folder, in order of their names."""
    return tuple(
        sorted(each for each in folder.iterdir() if each.is_file() and is_notice(each.name))
    )


def of_folder(folder: Path, source: str) -> Provenance:
    """Provenance of a decoder in a folder: its record, or else its card of the hub.

    Args:
        folder: Holds config.json and weights.
        source: What a person calls it: the origin, where no record says another.

    Raises:
        ValueError: The record is damaged.
    """
    record = folder / RECORD
    if record.is_file():
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            return Provenance(
                content["origin"], content["licence"], notices_in(folder), content["commit"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{record} cannot be read ({type(error).__name__}: {error}): expected the origin "
                "and the licence of these weights; fetch them again by python -m infra.base"
            ) from error
    return Provenance(source, licence_of_card(folder / "README.md"), notices_in(folder))


def of_hub(source: str, revision: str | None) -> Provenance:
    """Provenance of a model of the hub; its licence is unknown where its card is out of reach."""
    try:
        folder = snapshot_download(
            source, revision=revision, allow_patterns=["README.md", *NOTICE_PATTERNS]
        )
    except (HTTPError, LocalEntryNotFoundError) as error:
        logger.warning("the card of %s cannot be read (%s)", source, type(error).__name__)
        return Provenance(source)
    return replace(of_folder(Path(folder), source), commit=Path(folder).name)


def licence_of_card(card: Path) -> str | None:
    """The licence that a card names, by the hub's name for it."""
    if not card.is_file():
        return None
    licence = ModelCard.load(card).data.to_dict().get("license")
    if isinstance(licence, list):
        licence = licence[0] if len(licence) == 1 else None
    return None if licence in NAMELESS else licence
