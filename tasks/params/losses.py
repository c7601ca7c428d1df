"""What a contrastive loss may have beyond its published form; part of each training section."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.params.base import Number, PositiveFloat, PositiveInt, Section

Term = Literal[
    "own_negatives",
    "other_positives",
    "other_negatives",
    "queries",
    "documents",
    "document_queries",
]
"""As in model.losses.terms."""


def _distinct(terms: list[Term]) -> list[Term]:
    if len(set(terms)) < len(terms):
        raise ValueError(f"{terms} names a term twice")
    return terms


Softmax = Annotated[list[Term], Field(min_length=1), AfterValidator(_distinct)]
"""Terms that stand together below the fraction line."""


RECORDED = "teach/"
"""Begins the checkpoint of a model whose vectors the stage teach recorded."""


def recorded_by(checkpoint: str) -> str | None:
    """Name of the teacher whose record a checkpoint is, None of a model."""
    name = checkpoint.removeprefix(RECORDED)
    return None if name == checkpoint else name


class ScoreMask(Section):
    """Negatives that a model scores too near the positive to be believed are left out."""

    margin: Number
    """How far above the positive's score the bound lies, below it if negative (cosine)."""
    kind: Literal["absolute", "relative"]
    """Whether the margin is added, or is a share of the size of the positive's score."""
    in_batch: bool
    """Whether negatives that nobody chose for the row are judged."""
    explicit: bool
    """Whether a row's own hard negatives are judged."""

    except_terms: ClassVar[tuple[Term, ...]] = ("documents",)
    """Terms never judged: the papers define no student's score between two documents."""


class Frozen(Section):
    """A model that is asked and not trained.

    An artifact of an earlier stage changes only when that stage, and so this one, runs again. What
    another folder holds is recorded in outside.json before a run. Checkpoints of a training are
    bound to the contents in either case.
    """

    checkpoint: str
    """Model folder: of an earlier stage, as in evaluate.checkpoints, or an absolute path; or
    `teach/NAME`, what the stage teach recorded of a teacher."""
    query_prompt: str | None
    """Prefix of queries, and of documents of the same kind; null takes the prompts of the training,
    and a recorded teacher has its own."""
    document_prompt: str | None
    """Prefix of other documents; null as above."""

    @property
    def recorded_by(self) -> str | None:
        """Name of the teacher whose record this is, None of a model."""
        return recorded_by(self.checkpoint)

    @model_validator(mode="after")
    def _record_has_its_prompts(self) -> Self:
        prompts = (self.query_prompt, self.document_prompt)
        if self.recorded_by is not None and prompts != (None, None):
            raise ValueError(
                f"{self.checkpoint} was recorded with the prompts of its teacher: set query_prompt "
                "and document_prompt to null, and those of teach.teachers instead"
            )
        return self


class Guide(Frozen, ScoreMask):
    """A frozen model whose scores tell false negatives (GIST: margin 0, arXiv:2402.16829)."""

    except_terms: ClassVar[tuple[Term, ...]] = ()
    """GIST judges pairs of documents as well."""


class EmbeddingMatching(Section):
    """Squared distance of student's and teacher's vectors of the same text (EmbeddingGemma)."""

    weight: PositiveFloat
    """Factor on the term."""
    size: PositiveInt | None
    """Leading numbers compared: the student's full or a Matryoshka size, and one the teacher was
    trained for; null is the student's full size."""


class SimilarityMatching(Section):
    """Divergence of the student's softmax over the documents of the batch from the teacher's."""

    weight: PositiveFloat
    """Factor on the term."""
    teacher_temperature: PositiveFloat
    """Divides the teacher's cosine; the student's is divided by temperature."""


class Teacher(Frozen):
    """A frozen model that the student imitates; embeddings need equal sizes, similarities none."""

    embeddings: EmbeddingMatching | None
    """Term that matches vectors; null leaves it out."""
    similarities: SimilarityMatching | None
    """Term that matches similarities; null leaves it out."""
    whitening: Annotated[Number, Field(ge=0, le=0.5)] | None
    """For a teacher under teach/ that gives every two texts a high cosine: its vectors less the
    mean of all that were recorded (0), and with all directions equally wide (0.5), or between; null
    takes them as they are."""
    fit_texts: PositiveInt | None
    """Texts of the first steps on which backbone.projection is fitted to the teacher's vectors by
    least squares before the first step, some thousands; it must give the teacher's size. null
    leaves it as it is."""

    @model_validator(mode="after")
    def _is_asked(self) -> Self:
        if self.embeddings is None and self.similarities is None:
            raise ValueError("a teacher needs embeddings or similarities to be imitated in")
        return self

    @model_validator(mode="after")
    def _whitening_is_known(self) -> Self:
        if self.whitening is not None and self.recorded_by is None:
            raise ValueError(
                f"whitening with the checkpoint {self.checkpoint}: it is that of recorded vectors; "
                "name a teacher of the stage teach, or set whitening to null"
            )
        return self


class SoftLabels(Section):
    """Divergence from the teacher scores that come with a row, over positive and negatives."""

    weight: PositiveFloat
    """Factor on the term."""
    teacher_temperature: PositiveFloat
    """Divides the scores; the student's cosine is divided by temperature."""


class Triplet(Section):
    """Hinge on how much further than the positive each own hard negative is."""

    weight: PositiveFloat
    """Factor on the term."""
    margin: PositiveFloat
    """Cosine distance."""
