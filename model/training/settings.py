"""The numbers of one contrastive training, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from model.encoder.precision import Precision
from model.losses.terms import Term
from model.training.objective.loss_options import LossOptions

IN_BATCH_TASKS = frozenset({"retrieval", "nli", "bitext"})
"""Tasks whose other documents are safe negatives; texts of one class or cluster are not."""
UNJUDGED_TASKS = frozenset({"passages"})
"""Tasks whose pairs say nothing by themselves: only a teacher is imitated on them."""
GRADED_TASKS = frozenset({"sts"})
"""Tasks trained on the order of their scores instead of on negatives."""

WITHOUT_EFFECT = frozenset(
    {"micro_batch_tokens", "activation_checkpointing", "shard_weights"}
    | {"log_every_steps", "checkpoint_every_steps"}
)
"""Settings that change what a training takes and writes, but no weight beyond rounding: it goes on
from a checkpoint of others."""


@dataclass(frozen=True)
class LossSettings:
    """What a batch is scored by."""

    name: str
    """Preset of `model.losses.presets`, for rows that are not graded."""
    temperature: float
    """Divides the cosine, of contrastive losses and CoSENT alike."""
    graded: Literal["cosent", "pearson"] = "cosent"
    """Loss of rows with a similarity score."""
    hardness: Mapping[Term, float] = field(default_factory=dict)
    """Factor on the untempered cosine added to the logits of a term."""
    spread_out: float = 0.0
    """Weight of the spread-out regulariser; 0 leaves it out."""
    options: LossOptions = field(default_factory=LossOptions)
    """What is added to the preset."""
    contrastive_weight: float = 1.0
    """Factor on what the rows themselves say; 0 leaves the terms of a teacher alone."""
    use_student_margin: bool = True
    """Whether a mask by the student's scores is applied yet."""


@dataclass(frozen=True)
class LoraSettings:
    """Small matrices that are trained in place of the decoder's weights."""

    rank: int
    alpha: int
    """The product of the matrices counts alpha / rank times."""
    dropout: float
    """Share of an adapted layer's inputs that its adapter does not see in a step."""
    target_modules: tuple[str, ...]
    """Ends of the names of the layers that are adapted."""


@dataclass(frozen=True)
class MemorySettings:
    """Documents of earlier batches as further negatives."""

    batches: int
    """Batches whose documents are remembered."""
    from_step: int
    """First step, counted from 1, that uses them: early embeddings are soon out of date."""


@dataclass(frozen=True)
class TrainSettings:
    """Values of a training; every field is required."""

    max_steps: int
    batch_size: int
    """Queries per optimiser step."""
    micro_batch_tokens: int
    """Tokens whose activations are held at once."""
    max_length_tokens: int
    learning_rate: float
    min_learning_rate_share: float
    """Learning rate at the last step over its peak."""
    warmup_steps: int
    weight_decay: float
    gradient_clip_norm: float
    loss: str
    """Name of a preset of `model.losses.presets`."""
    temperature: float
    hard_negatives: int
    """Explicit negatives per query; a row with fewer gives what it has."""
    margin_from_step: int
    """First step, counted from 1, at which a loss with a student margin uses it."""
    matryoshka_dims: Sequence[int]
    """Prefix sizes trained beside the full size."""
    source_temperature: float
    """Exponent of the row count in the sampling weight of a source; 0 leaves the weights alone."""
    precision: Precision
    log_every_steps: int
    """Steps averaged into one row of the curves."""
    checkpoint_every_steps: int
    seed: int
    graded_loss: Literal["cosent", "pearson"] = "cosent"
    hardness: Mapping[Term, float] = field(default_factory=dict)
    spread_out: float = 0.0
    class_negatives: Literal["own", "batch"] = "own"
    """Whether rows of classes and clusters meet other rows, those of their own class left out."""
    options: LossOptions = field(default_factory=LossOptions)
    contrastive_weight: float = 1.0
    """Factor on the contrastive and the graded loss; 0 distils alone."""
    activation_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass instead of kept."""
    compile_blocks: bool = False
    """Whether blocks of the decoder are compiled before the first step."""
    lora: LoraSettings | None = None
    """None trains every weight."""
    frozen_blocks: int = 0
    """Lowest blocks that are not trained, nor the embeddings below them; 0 trains all."""
    fit_texts: int | None = None
    """Least texts that the projection is fitted to the teacher on before the first step; None
    leaves it as it is."""
    memory: MemorySettings | None = None
    """None takes negatives from the batch alone."""
    shard_weights: bool = False
    """Whether the processes of a team share weights and moments instead of each holding all."""
    batches: Literal["source", "mixed", "interleaved"] = "source"
    """A step holds rows of one source, rows of all, or sub-batches of one source each."""
    sub_batches: int = 1
    """Sub-batches per optimiser step."""

    @property
    def sub_batch_size(self) -> int:
        """Queries that are drawn together from one source, unless batches are mixed."""
        return self.batch_size // self.sub_batches

    def loss_at(self, step: int) -> LossSettings:
        """What the batch of a step, counted from 1, is scored by."""
        return LossSettings(
            self.loss,
            self.temperature,
            self.graded_loss,
            self.hardness,
            self.spread_out,
            self.options,
            contrastive_weight=self.contrastive_weight,
            use_student_margin=step >= self.margin_from_step,
        )


@dataclass(frozen=True)
class TrainingSource:
    """One dataset: rows of one task, drawn together into batches."""

    name: str
    task: str
    prompt: str
    """Prefix of the queries, "" for none."""
    document_prompt: str
    """Prefix of the documents, "" but for symmetric tasks."""
    table: pa.Table
    """Columns id, query, positives, negatives and, for graded tasks, score; where there are any,
    label, positive_scores and negative_scores."""
    weight: float
    """Factor on the sampling weight."""
    is_symmetric: bool = False
    """Whether documents are texts of the same kind as queries."""

    @property
    def is_in_batch(self) -> bool:
        """Whether documents of other rows count as negatives."""
        return self.task in IN_BATCH_TASKS

    @property
    def is_judged(self) -> bool:
        """Whether its pairs say something by themselves."""
        return self.task not in UNJUDGED_TASKS

    @property
    def is_graded(self) -> bool:
        """Whether rows carry a similarity score to be ordered by."""
        return self.task in GRADED_TASKS
