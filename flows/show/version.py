"""The version that a run has published, or found published: its tag, its texts for git and UI."""

from dataclasses import dataclass
from pathlib import Path

from flows.results import read_judged, read_published
from flows.show.tables import points
from tasks.params.load import Params
from tasks.params.paths import PUBLISHED


@dataclass(frozen=True)
class PublishedVersion:
    """A model in the registry, with the scores of the run that published it."""

    tag: str
    """Name of the model and of the version: samovar-sample/v0007-1a2b3c4d."""
    address: str
    """Its folder in the store."""
    mean: float
    """Mean score, 0-1."""
    tasks: dict[str, float]
    """Score per task, 0-1."""
    is_new: bool
    """Whether this run published it."""

    def commit_message(self) -> str:
        """Subject with the mean, then every task."""
        scores = [f"{task} {points(score)}" for task, score in self.tasks.items()]
        subject = f"Publish {self.tag}, mean {points(self.mean)}"
        return "\n".join([subject, "", *scores, "", f"Model: {self.address}"])

    def markdown(self, recorded_tag: str | None) -> str:
        """Where it is, how to load it, and how to have the run again.

        Args:
            recorded_tag: The tag in git, if it was made.
        """
        lines = [f"**{self.tag}**, mean {points(self.mean)}", "", f"Model: `{self.address}`"]
        if recorded_tag is not None:
            lines += ["", "The run again, in any clone:", "", "```", *checkout(recorded_tag), "```"]
        return "\n".join(lines)


def read_version(params: Params, published: Path = PUBLISHED) -> PublishedVersion | None:
    """What the publication at the end of this run left; None when the gate refused."""
    version = read_published(published)
    rung = read_judged(params)
    if version is None or version["version"] is None or rung is None:
        return None
    return PublishedVersion(
        tag=f"{params.publish.name}/{version['version']}",
        address=version["address"],
        mean=rung["mean"],
        tasks=rung["tasks"],
        is_new=version["is_new"],
    )


def refusal(published: Path = PUBLISHED) -> list[str]:
    """Why the gate let the model of this run not be published; empty when it did."""
    return list((read_published(published) or {}).get("reasons", []))


def checkout(tag: str) -> list[str]:
    """The commands that bring back everything of the run."""
    return [f"git checkout {tag}", "make pull", "dvc repro"]
