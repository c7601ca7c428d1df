"""A finished model of somebody else: what it is and how texts are shown to it.

The folder holds no weights, only where they are and what they were when the stage ran.
"""

from dataclasses import dataclass
from pathlib import Path

from tasks.contract.stage import read_json, write_json
from tasks.params.teach import TeacherModel

KIND = "rival"


@dataclass(frozen=True)
class Rival:
    """An embedding model that sentence-transformers loads, or a version of this project."""

    name: str
    settings: TeacherModel
    content: str
    """Fingerprint of its folder, "" for a hub id, which has its revision."""

    def save(self, folder: Path) -> None:
        """Write what it is."""
        folder.mkdir(parents=True)
        content = {"kind": KIND, "name": self.name, "content": self.content}
        write_json(folder / "baseline.json", content | {"settings": self.settings.model_dump()})

    @classmethod
    def load(cls, folder: Path) -> "Rival":
        """Read what `save` wrote."""
        config = read_json(folder / "baseline.json")
        settings = TeacherModel.model_validate(config["settings"])
        return cls(config["name"], settings, config["content"])
