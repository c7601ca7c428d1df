"""Sections of the stages that make a model: backbone, pruning, training, mining, merging."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from tasks.sections.base import Fraction, Name, Section, Share, Task
from tasks.sections.losses import Guide, ScoreMask, SoftLabels, Softmax, Teacher, Triplet


class Scratch(Section):
    """A small Qwen3-type decoder and its tokenizer, trained on the ingested documents."""

    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    max_steps: PositiveInt
    """Optimiser steps of causal language modelling."""
    batch_tokens: PositiveInt
    """Tokens per optimiser step."""
    sequence_tokens: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    seed: NonNegativeInt


class Backbone(Section):
    """Section backbone."""

    source: str
    """`scratch`, a hub id, a folder, or an s3:// prefix."""
    revision: str | None
    """Commit of a hub id; must be null for the others."""
    attention: Literal["bidirectional", "causal"]
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]
    pooling: Literal["mean", "weighted_mean", "last", "latent"]
    num_latents: PositiveInt
    """Latent array length of `latent` pooling (512 in NV-Embed and GigaEmbeddings)."""
    num_latent_heads: PositiveInt
    latent_head_dim: PositiveInt
    latent_expansion: PositiveInt
    """Width of the latent block's feed-forward layer over the hidden size."""
    pool_prompt: bool
    """Whether the tokens of the instruction take part in pooling."""
    max_length_tokens: PositiveInt
    scratch: Scratch | None

    @model_validator(mode="after")
    def _source_and_scratch_agree(self) -> Self:
        if (self.source == "scratch") != (self.scratch is not None):
            raise ValueError(
                "source: scratch needs a mapping under scratch:, any other source null"
            )
        return self


class Prune(Section):
    """Section prune."""

    fraction: Fraction
    """Share of the blocks removed; 0 keeps all."""
    method: Literal["block_influence", "angular_distance", "deepest"]
    calibration_documents: PositiveInt
    max_length_tokens: PositiveInt


class Prompts(Section):
    """Section prompts: one instruction per task, used in training, mining and evaluation."""

    template: str
    """Holds {instruction} and {text}; documents never get it."""
    tasks: dict[Task, str]
    """Instruction of each task; an empty one leaves the text bare."""

    @model_validator(mode="after")
    def _template_is_complete(self) -> Self:
        if "{instruction}" not in self.template or not self.template.endswith("{text}"):
            raise ValueError("template must hold {instruction} and end with {text}")
        return self


class Training(Section):
    """One contrastive training: sections pretrain and finetune, and multitask.training."""

    max_steps: PositiveInt
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=2)]
    """Queries per optimiser step, all of one source."""
    micro_batch_tokens: PositiveInt
    """Tokens per forward pass; a larger batch takes GradCache's second pass."""
    max_length_tokens: PositiveInt
    learning_rate: PositiveFloat
    min_learning_rate_share: Share
    """Learning rate at the last step over its peak."""
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    gradient_clip_norm: PositiveFloat
    loss: Literal["giga", "gemini", "qwen3", "nv-embed-1", "nv-embed-2", "gecko", "f2llm"]
    """Published contrastive loss; see class_negatives for classes and clusters."""
    graded_loss: Literal["cosent", "pearson"] = "cosent"
    """Loss of rows with a similarity score: order of the scores, or linear correlation."""
    hardness: dict[
        Literal["own_negatives", "other_positives", "other_negatives"], NonNegativeFloat
    ] = Field(default_factory=dict)
    """Factor on the untempered cosine that is added to the logits of these terms."""
    spread_out: NonNegativeFloat = 0.0
    """Weight of the spread-out regulariser (EmbeddingGemma)."""
    softmaxes: Annotated[list[Softmax], Field(min_length=1)] | None
    """Terms of each softmax, in place of those of `loss`; several softmaxes are added up."""
    class_negatives: Literal["own", "batch"]
    """Negatives of classes and clusters: their own alone, or the terms of `loss`, with texts that
    share or may share a label left out."""
    student_margin: ScoreMask | None
    """Mask by the trained model's own scores; null takes that of `loss`, if it has one."""
    guide: Guide | None
    """Mask by the scores of a frozen model, from the first step; null for none."""
    soft_labels: SoftLabels | None
    """Teacher scores of mined rows as soft labels; rows without them add nothing."""
    triplet: Triplet | None
    """Triplet margin loss over own hard negatives; null leaves it out."""
    teacher: Teacher | None
    """Distillation from a frozen model; null leaves it out."""
    temperature: PositiveFloat
    """Divides the cosine."""
    hard_negatives: NonNegativeInt
    """Explicit negatives per query; a row with fewer gives what it has."""
    margin_from_step: PositiveInt
    """First step at which a loss with a student margin uses it: early scores mask at random."""
    matryoshka_dims: list[PositiveInt]
    """Prefix sizes trained beside the full size; may be empty."""
    matryoshka_weights: dict[PositiveInt, NonNegativeFloat]
    """Size to a factor on its loss, the full size included; 1 for those not named."""
    source_temperature: PositiveFloat
    """Exponent of the row count in the sampling weight of a source; 1 is proportional."""
    log_every_steps: PositiveInt
    """Steps averaged into one point of the plotted curves."""
    checkpoint_every_steps: PositiveInt
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be below max_steps {self.max_steps}"
            )
        return self


class Stage(Section):
    """A training and the sources it draws from."""

    training: Training
    sources: dict[Name, PositiveFloat] = Field(min_length=1)
    """Source of ingest.sources, or `synthetic`, to a factor on its sampling weight."""


class Mine(Section):
    """Section mine."""

    sources: list[Name] = Field(min_length=1)
    top_k: PositiveInt
    """Candidates per query before filtering."""
    negatives: PositiveInt
    """Hard negatives kept per query."""
    max_positive_share: PositiveFloat
    """A candidate is kept only below this share of the positive's score (NV-Retriever, 0.95)."""
    max_documents: PositiveInt | None
    """Documents of the corpus that are candidates, drawn at random; null takes all. The positives
    of the mined rows are candidates in any case."""
    max_length_tokens: PositiveInt
    """Longer texts are cut."""
    batch_tokens: PositiveInt
    seed: NonNegativeInt


class Variant(Section):
    """One specialist of stage 3."""

    sources: dict[Name, PositiveFloat] = Field(min_length=1)
    """Source to a factor on its sampling weight."""
    seed: NonNegativeInt


class Multitask(Section):
    """Section multitask: one training recipe, one model per variant."""

    training: Training
    variants: dict[Name, Variant] = Field(min_length=1)


class SelfPositioning(Section):
    """Search for the merged position in task-vector space (arXiv:2410.15035)."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    size_penalty: NonNegativeFloat
    """mu: weight of the length factor lambda in the loss."""
    probe_examples: PositiveInt
    temperature: PositiveFloat
    seed: NonNegativeInt


class Merge(Section):
    """Section merge."""

    method: Literal["best", "uniform_soup", "self_positioning"]
    """`best` builds every method, keeps the best by development nDCG@10, variants included."""
    self_positioning: SelfPositioning
    development_examples: PositiveInt
    """Queries of the development split that the choice is made on."""


class Compute(Section):
    """Section compute: fixed, so that a run gives the same bytes again."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "bf16", "fp32"]
    """Type of the decoder's matrix products; weights and similarities are always float32. `auto`
    takes bf16 where the device has instructions for it, else fp32."""
    threads: PositiveInt
    """CPU threads of torch in each stage."""
    processes: PositiveInt = 1
    """Processes of each contrastive training, one per GPU; the result is the same but for
    rounding."""
