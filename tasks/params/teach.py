"""Section of the stage teach: which models are asked for the vectors of which texts."""

from typing import Annotated

from pydantic import AfterValidator

from tasks.params.addresses import Place
from tasks.params.base import Name, PositiveInt, Section


def _no_bucket(source: str) -> str:
    if "://" in source:
        raise ValueError(
            f"{source!r} is an address: fetch the teacher into a folder and name that, or an id "
            "of the hub"
        )
    return source


class TeacherModel(Section):
    """A finished embedding model that is asked before the trainings."""

    source: Annotated[Place, AfterValidator(_no_bucket)]
    """Folder that sentence-transformers loads, a version of this project included, or hub id."""
    revision: str | None
    """Commit of a hub id; must be null for a folder."""
    query_prompt: str
    """Prefix of queries, and of documents of the same kind (sts, classification, clustering)."""
    document_prompt: str
    """Prefix of other documents."""
    max_length_tokens: PositiveInt
    """Texts are cut there, prompt included, or where the teacher itself cuts."""


class Teach(Section):
    """Section teach."""

    teachers: dict[Name, TeacherModel]
    """Name to model; a training asks one by `teacher.checkpoint: teach/NAME`, or as a guide."""
    sources: list[str]
    """Sources whose texts are shown, `synthetic` included; a training needs those of its own."""
    documents: bool
    """Whether the documents are shown too: trainings on mined negatives need them."""
    block_texts: PositiveInt
    """Texts after which what was computed is safe from a kill."""
