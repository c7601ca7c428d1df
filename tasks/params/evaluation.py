"""Sections of the stages that judge a model and pass it on."""

from typing import Self

from pydantic import Field, model_validator

from tasks.params.addresses import Place, Service
from tasks.params.base import (
    Name,
    NonNegativeFloat,
    Number,
    PositiveInt,
    Section,
    Seed,
)
from tasks.params.teach import TeacherModel


class Baseline(Section):
    """Section baseline: the two rungs below every model, and models of others beside them."""

    ngram_range: tuple[PositiveInt, PositiveInt]
    """Shortest and longest character n-gram of TF-IDF."""
    components: PositiveInt
    """Dimensions kept by SVD, and of the random vectors."""
    max_texts: PositiveInt
    """Texts that TF-IDF and SVD are fitted on."""
    rivals: dict[Name, TeacherModel]
    """Finished embedding models that the rungs are judged beside, each with its own prompts;
    `baseline/rivals/NAME` in evaluate.checkpoints."""
    seed: Seed

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if self.ngram_range[0] > self.ngram_range[1]:
            raise ValueError(f"ngram_range {list(self.ngram_range)} must not fall")
        return self


class Evaluate(Section):
    """Section evaluate."""

    tasks: dict[Name, str] = Field(min_length=1)
    """Folder name below data.benchmark to the mteb task whose class and metadata it takes."""
    checkpoints: dict[Name, str] = Field(min_length=1)
    """Rung of the ladder to its folder below artifacts/, lowest rung first."""
    task_prompts: dict[str, str]
    """Instruction per evaluation task; a task that is not listed gets prompts.tasks by its type."""
    left_out_rows: PositiveInt
    """Rows of each source with left_out that every rung is judged on."""
    batch_tokens: PositiveInt
    """Tokens per forward pass."""
    max_length_tokens: PositiveInt
    """Tokens at which a text is cut, prompt included."""
    seed: Seed


class Report(Section):
    """Section report."""

    example_task: Name
    """Retrieval task of evaluate.tasks whose queries are shown with retrieved passages."""
    before: Name
    """Rung shown as `before`."""
    after: Name
    """Rung shown as `after`."""
    example_queries: PositiveInt
    """Queries shown."""


class Gate(Section):
    """Section gate."""

    candidate: Name
    """Rung of evaluate.checkpoints that is judged, and published if it passes."""
    min_mean_gain: Number
    """Smallest gain of the mean over the champion, in score points of 0-1."""
    max_task_loss: NonNegativeFloat
    """Largest loss of any one task against the champion, in score points of 0-1."""
    must_beat: list[Name]
    """Rungs whose mean the candidate must exceed, champion or not."""


class Publish(Section):
    """Section publish."""

    name: Name
    """Name of the model in the registry."""
    checkpoint: str
    """Folder below artifacts/ that is published: that of gate.candidate."""


class Cost(Section):
    """Section cost: money in the report and in a dry run; no other output depends on it."""

    machine_hour: NonNegativeFloat | None
    """Price of an hour of the machine that runs the stages; null where it is not counted."""
    gpu_hour: NonNegativeFloat | None
    """Price of an hour of one GPU, counted while a stage holds it; null where it is not counted."""
    million_prompt_tokens: NonNegativeFloat | None
    """Price of a million tokens that the endpoint of synthesize reads; null for one's own."""
    million_completion_tokens: NonNegativeFloat | None
    """Price of a million tokens that it writes; null where it is not counted."""
    currency: Name
    """What the prices are in."""

    def of(self, seconds: float, gpu_seconds: float) -> str | None:
        """Price of so many seconds of the machine and of one GPU; None without any price."""
        if self.machine_hour is None and self.gpu_hour is None:
            return None
        of_machine = (self.machine_hour or 0.0) * seconds
        of_gpus = (self.gpu_hour or 0.0) * gpu_seconds
        return f"{(of_machine + of_gpus) / 3600:.2f} {self.currency}"

    def of_tokens(self, prompt: int, completion: int) -> str | None:
        """Price of so many tokens read and written by an endpoint; None without any price."""
        if self.million_prompt_tokens is None and self.million_completion_tokens is None:
            return None
        read = (self.million_prompt_tokens or 0.0) * prompt
        written = (self.million_completion_tokens or 0.0) * completion
        return f"{(read + written) / 1e6:.2f} {self.currency}"


class Record(Section):
    """Section record: what git keeps of a published version; no output depends on it."""

    branch: Name | None
    """Each published version becomes a commit of it and a tag; null leaves git alone."""
    remote: Name | None
    """Git remote that gets both, such as origin; null keeps them in this repository."""


class Store(Section):
    """Section store: where artifacts and published models live; keys come from the environment."""

    url: Place
    """A folder or s3://bucket/prefix."""
    endpoint_url: Service | None
    """Address of an S3 service other than AWS."""
