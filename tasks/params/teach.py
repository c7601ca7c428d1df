"""Section of the stage teach: which models are asked for the vectors of which texts."""

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from tasks.params.addresses import ADDRESS_FAULT, Place
from tasks.params.base import Name, PositiveFloat, PositiveInt, Section
from tasks.params.paths import ARTIFACTS
from tasks.params.server import Server


def _lasting_folder(source: str) -> str:
    if "://" in source:
        raise ValueError(
            f"{source!r} is an address: fetch the teacher into a folder and name that, or an id "
            "of the hub"
        )
    if PurePath(source).parts[:1] == ARTIFACTS.parts:
        raise ValueError(
            f"{source!r} is an output of these stages, which depend on the teacher: copy it to "
            "another folder, or fetch what was published (python -m tasks.fetch)"
        )
    return source


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        # somebody may have written the key itself
        raise PydanticCustomError(
            ADDRESS_FAULT,
            "got no name of an environment variable; expected capitals, digits and '_', such as "
            "OPENAI_API_KEY, and the key itself in the environment",
        )
    return name


class TeacherModel(Section):
    """A finished embedding model that is asked before the trainings."""

    source: Annotated[Place, AfterValidator(_lasting_folder)]
    """Folder that sentence-transformers loads, a version of this project included, or hub id."""
    revision: str | None
    """Commit of a hub id; must be null for a folder."""
    query_prompt: str
    """Prefix of queries, and of documents of the same kind (sts, classification, clustering)."""
    document_prompt: str
    """Prefix of other documents."""
    max_length_tokens: PositiveInt
    """Texts are cut there, prompt included, or where the teacher itself cuts."""

    @property
    def told(self) -> str:
        """What it is, for people."""
        return self.source


class TeacherEndpoint(Server):
    """A model behind an OpenAI-compatible embeddings endpoint."""

    key_variable: Annotated[str, AfterValidator(_variable)] | None
    """Environment variable with the key; null sends none."""
    dimensions: PositiveInt | None
    """Size that the endpoint is asked to shorten vectors to; null leaves them as they are."""
    encoding_format: Literal["float", "base64"]
    """How numbers are sent; base64 is a third of the bytes, and not every server knows it."""
    query_prompt: str
    """Prefix of queries, and of documents of the same kind (sts, classification, clustering)."""
    document_prompt: str
    """Prefix of other documents."""
    max_characters: PositiveInt | None
    """Texts are cut there, prompt not counted; null sends them whole, to be cut or refused."""
    batch_texts: PositiveInt
    """Texts per request."""

    @property
    def told(self) -> str:
        """What it is, for people; not where, which may be nobody's business."""
        return f"{self.model}, behind an endpoint"

    @property
    def asks_for(self) -> dict[str, Any]:
        """What decides its answers; the address and the way there do not."""
        return self.model_dump(
            include={
                *("model", "dimensions", "query_prompt", "document_prompt", "max_characters"),
            }
        )


class TeacherAverage(Section):
    """Several teachers as one, whose similarities are the weighted means of theirs."""

    average: Annotated[dict[Name, PositiveFloat], Field(min_length=2)]
    """Names of others in teach.teachers, and their weights, which need not sum to one."""

    @property
    def told(self) -> str:
        """What it is, for people."""
        return " + ".join(f"{weight:g} {name}" for name, weight in self.average.items())


def _kind(value: object) -> str:
    """Which teacher it is, by the key that only it has; tags in brackets are not shown."""
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return next((f"({key})" for key in ("average", "base_url") if key in keys), "(source)")


AskedTeacher = TeacherModel | TeacherEndpoint
Teacher = Annotated[
    Annotated[TeacherModel, Tag("(source)")]
    | Annotated[TeacherEndpoint, Tag("(base_url)")]
    | Annotated[TeacherAverage, Tag("(average)")],
    Discriminator(_kind),
]


class Teach(Section):
    """Section teach."""

    teachers: dict[Name, Teacher]
    """Name to model; a training asks one by `teacher.checkpoint: teach/NAME`, or as a guide."""
    sources: list[str]
    """Sources whose texts are shown, `synthetic` included; a training needs those of its own."""
    documents: bool
    """Whether the documents are shown too: trainings on mined negatives need them."""
    block_texts: PositiveInt
    """Texts after which what a model computed is safe from a kill; of endpoints each answer is."""

    @property
    def asked(self) -> dict[str, AskedTeacher]:
        """Those that say something themselves."""
        return {
            name: each
            for name, each in self.teachers.items()
            if not isinstance(each, TeacherAverage)
        }

    @property
    def averages(self) -> dict[str, TeacherAverage]:
        """Those that are made of others."""
        return {
            name: each for name, each in self.teachers.items() if isinstance(each, TeacherAverage)
        }

    def parts(self, name: str) -> list[str]:
        """Who is asked for what a teacher says: itself, or those that it averages."""
        average = self.averages.get(name)
        return [name] if average is None else list(average.average)

    @model_validator(mode="after")
    def _averages_are_of_others(self) -> Self:
        for name, each in self.averages.items():
            strangers = sorted(each.average.keys() - self.asked.keys())
            if strangers:
                raise ValueError(
                    f"teachers.{name} averages {', '.join(strangers)}: expected models and "
                    f"endpoints of teach.teachers, which names {', '.join(self.asked) or 'none'}"
                )
        return self
