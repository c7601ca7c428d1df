"""Sections of the stages that make a model: backbone, pruning, training, mining, merging."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.addresses import Place
from tasks.params.base import (
    Fraction,
    Integer,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Share,
    Task,
)
from tasks.params.losses import (
    RECORDED,
    EmbeddingMatching,
    Guide,
    ScoreMask,
    SimilarityMatching,
    SoftLabels,
    Softmax,
    Teacher,
    Triplet,
    recorded_by,
)

UNSOUGHT_TOKENS = 4096
"""What `micro_batch_tokens: auto` stands for where nothing is tried."""


class Scratch(Section):
    """A small Qwen3-type decoder and its tokenizer, trained on the ingested documents."""

    vocab_size: Annotated[Integer, Field(ge=300)]
    """Most entries of the tokenizer, special ones included; a small corpus gives fewer."""
    hidden_size: PositiveInt
    """Width of the token states."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layers."""
    num_layers: PositiveInt
    """Transformer blocks, before pruning."""
    num_heads: PositiveInt
    """Query heads of the attention."""
    num_key_value_heads: PositiveInt
    """Key and value heads; divides num_heads."""
    head_dim: PositiveInt
    """Width of one attention head."""
    max_steps: PositiveInt
    """Optimiser steps of causal language modelling."""
    batch_tokens: PositiveInt
    """Tokens per optimiser step."""
    sequence_tokens: PositiveInt
    """Tokens per training sequence."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    warmup_steps: NonNegativeInt
    """Optimiser steps of linear rise to the peak."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of AdamW."""
    seed: Seed

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: each of these serves as many heads"
            )
        return self


class RopeScaling(Section):
    """Rotary positions beyond the decoder's trained length."""

    type: Literal["linear", "ntk", "yarn"]
    """Positions divided; the base raised; or both, by frequency, with warmer attention."""
    factor: Annotated[Number, Field(ge=1)]
    """Longest text over the trained length; 1 changes nothing."""


class Vocabulary(Section):
    """backbone.vocabulary: the tokens of a decoder from elsewhere."""

    kind: Literal["keep", "trim", "extend"]
    """`trim` drops the tokens that the ingested texts do not use; texts of the others keep their
    vectors. `extend` adds tokens that join two which stand beside each other in the ingested texts;
    texts without new tokens keep their ids. BPE and Unigram alone can be trimmed and extended."""
    min_count: PositiveInt
    """Least occurrences of a token that is not dropped, or of two tokens that become one."""
    max_tokens: PositiveInt | None
    """Most tokens that `trim` leaves, the frequent ones; null sets no bound."""
    new_tokens: PositiveInt
    """Most tokens that `extend` adds, learnt from some 20 million characters of the texts."""
    initial: Literal["mean", "similar"]
    """What the row of a new token begins with: the mean of the rows of the old tokens that it
    joins, or that of the 10 old tokens which stand in the most similar company in the texts,
    weighted by a softmax of the similarities over 0.1 (after OFA, without its vectors from
    outside)."""


class Adapt(Section):
    """backbone.adapt: language modelling of a decoder from elsewhere, on the ingested documents."""

    objective: Literal["causal", "masked"]
    """Every next token, with causal attention; or masked next-token prediction (LLM2Vec): a hidden
    token, from the state before it, with attention on two sides."""
    mask_share: Annotated[Number, Field(gt=0, lt=1)] | None
    """Share of the tokens that are hidden; null for the causal objective."""
    max_steps: PositiveInt
    """Optimiser steps."""
    batch_tokens: PositiveInt
    """Tokens per optimiser step."""
    sequence_tokens: Annotated[Integer, Field(ge=3)]
    """Tokens per training sequence."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    warmup_steps: NonNegativeInt
    """Optimiser steps of linear rise to the peak."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of AdamW."""
    seed: Seed

    @model_validator(mode="after")
    def _mask_share_is_of_masks(self) -> Self:
        if (self.objective == "masked") != (self.mask_share is not None):
            raise ValueError(
                f"mask_share {self.mask_share} with objective {self.objective}: masked needs a "
                "number, causal null"
            )
        return self


class Backbone(Section):
    """Section backbone."""

    source: Place
    """`scratch`, a hub id, a folder, or an s3:// prefix."""
    revision: str | None
    """Commit of a hub id; must be null for the others."""
    vocabulary: Vocabulary
    """Which of its tokens a decoder from elsewhere keeps, and which it gets."""
    adapt: Adapt | None
    """Language modelling that a decoder from elsewhere goes on with; null leaves its weights."""
    attention: Literal["bidirectional", "causal"]
    """Whether a token sees the whole text or only what precedes it."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]
    """Attention kernel that training and encoding use."""
    pooling: Literal["mean", "weighted_mean", "last", "latent", "multilayer"]
    """How the token states become one vector."""
    num_latents: PositiveInt
    """Latent array length of `latent` pooling (512 in NV-Embed and GigaEmbeddings) and of
    `multilayer` pooling (768 in its paper)."""
    num_latent_heads: PositiveInt
    """Attention heads of `latent` pooling."""
    latent_head_dim: PositiveInt
    """Width of one of these heads."""
    latent_expansion: PositiveInt
    """Width of the latent block's feed-forward layer over the hidden size."""
    layer_tokens: Literal["mean", "last"]
    """What stands for a layer in `multilayer` pooling: the mean of its tokens, or its EOS token."""
    projection: PositiveInt | None
    """Numbers per vector after a linear projection of the pooled state; null keeps the decoder's
    hidden size. Matryoshka sizes are prefixes of it."""
    pool_prompt: bool
    """Whether the tokens of the instruction take part in pooling."""
    max_length_tokens: PositiveInt
    """Tokens at which a text is cut, prompt included, unless a caller sets its own limit."""
    rope_scaling: RopeScaling | None
    """Lets max_length_tokens exceed the decoder's trained length; null leaves its positions."""
    attention_temperature: PositiveFloat
    """Divides the logits of every attention softmax, baked into the weights; below 1 keeps long
    texts apart (Length Collapse). 1 changes nothing."""
    scratch: Scratch | None
    """Sizes and training of the small decoder; null for any other source."""

    @model_validator(mode="after")
    def _source_and_scratch_agree(self) -> Self:
        if (self.source == "scratch") != (self.scratch is not None):
            raise ValueError(
                "source: scratch needs a mapping under scratch:, any other source null"
            )
        if self.source == "scratch" and self.vocabulary.kind != "keep":
            raise ValueError(
                "vocabulary is of decoders from elsewhere: scratch.vocab_size sizes that of scratch"
            )
        if self.source == "scratch" and self.adapt is not None:
            raise ValueError(
                "adapt is of decoders from elsewhere: scratch.max_steps is the language modelling "
                "of scratch, set adapt to null"
            )
        return self

    @model_validator(mode="after")
    def _adapted_attention_is_used(self) -> Self:
        masked = self.adapt is not None and self.adapt.objective == "masked"
        if masked and self.attention == "causal":
            raise ValueError(
                "adapt.objective masked trains attention on two sides, but attention is causal: "
                "set one of them otherwise"
            )
        return self


class Prune(Section):
    """Section prune."""

    fraction: Fraction
    """Share of the blocks removed; 0 keeps all."""
    method: Literal["block_influence", "angular_distance", "deepest", "last"]
    """How the blocks are chosen: by the measured change of the states, or the last ones, of which
    `deepest` spares the final block and `last` does not."""
    calibration_documents: PositiveInt
    """Documents the change is measured on."""
    max_length_tokens: PositiveInt
    """Tokens at which those documents are cut."""


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


class Lora(Section):
    """Adapters that are trained in place of the decoder, and merged into it at the end."""

    rank: PositiveInt
    """Rows of the smaller matrix."""
    alpha: PositiveInt
    """The adapter's product counts alpha / rank times."""
    dropout: Fraction
    """Share of an adapted layer's inputs that its adapter does not see in a step."""
    target_modules: list[str] = Field(min_length=1)
    """Ends of the names of the layers that are adapted, such as q_proj."""


class Memory(Section):
    """Documents of earlier batches as further negatives, without gradient (GigaEmbeddings)."""

    batches: PositiveInt
    """Batches whose documents are remembered, over all sources; their embeddings are that old."""
    from_step: PositiveInt
    """First step that uses them: early embeddings are soon out of date."""


class Training(Section):
    """One contrastive training: sections pretrain and finetune, and multitask.training."""

    max_steps: PositiveInt
    """Optimiser steps."""
    batch_size: Annotated[Integer, Field(ge=2)]
    """Queries per optimiser step."""
    batches: Literal["source", "mixed", "interleaved"]
    """Rows of a step: all of one source, of all sources mixed, or sub-batches of one source each.
    In a mixed one retrieval, nli and bitext share their documents as negatives; classes and
    clusters are scored apart, and graded rows by their own loss; each counts by its rows."""
    sub_batches: PositiveInt
    """Sub-batches per optimiser step where batches are interleaved, each with its own in-batch
    negatives; 1 for the other ways."""
    micro_batch_tokens: PositiveInt | Literal["auto"]
    """Tokens per forward pass; a larger batch takes GradCache's second pass. `auto` finds the most
    that fits the GPU by trying, once per machine and model; on a processor it is 4096."""
    activation_checkpointing: bool
    """Whether decoder blocks are computed again in the backward pass instead of kept: a fraction of
    the memory of activations, for one more forward pass."""
    lora: Lora | None
    """Adapters that are trained in place of the decoder; null trains every weight."""
    frozen_blocks: NonNegativeInt
    """Lowest blocks that are not trained, nor the embeddings below them: they run once over every
    text of the training, and a step costs what lies above. 0 trains all."""
    memory: Memory | None
    """Documents of earlier batches of the same source as further negatives; null takes none."""
    max_length_tokens: PositiveInt
    """Tokens at which a text is cut, prompt included."""
    learning_rate: PositiveFloat
    """Peak learning rate of AdamW."""
    min_learning_rate_share: Share
    """Learning rate at the last step over its peak."""
    warmup_steps: NonNegativeInt
    """Optimiser steps of linear rise to the peak."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay of AdamW."""
    gradient_clip_norm: PositiveFloat
    """Largest norm of the whole gradient; a longer one is shortened to it."""
    loss: Literal["giga", "gemini", "qwen3", "nv-embed-1", "nv-embed-2", "gecko", "f2llm"]
    """Published contrastive loss; see class_negatives for classes and clusters."""
    contrastive_weight: NonNegativeFloat
    """Factor on `loss` and `graded_loss` beside the terms of a teacher; 0 distils alone."""
    graded_loss: Literal["cosent", "pearson"]
    """Loss of rows with a similarity score: order of the scores, or linear correlation."""
    hardness: dict[Literal["own_negatives", "other_positives", "other_negatives"], NonNegativeFloat]
    """Factor on the untempered cosine added to the logits of these terms; {} leaves them alone."""
    spread_out: NonNegativeFloat
    """Weight of the spread-out regulariser (EmbeddingGemma); 0 leaves it out."""
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
    temperature: PositiveFloat | None
    """Divides the cosine; null takes that of the paper of `loss`, 0.05 where it gives none."""
    hard_negatives: NonNegativeInt
    """Explicit negatives per query; a row with fewer gives what it has."""
    margin_from_step: PositiveInt
    """First step at which a loss with a student margin uses it: early scores mask at random."""
    matryoshka_dims: list[PositiveInt]
    """Prefix sizes trained beside the full size; may be empty."""
    matryoshka_weights: dict[PositiveInt, NonNegativeFloat]
    """Size to a factor on its loss, the full size included; 1 for those not named."""
    source_temperature: NonNegativeFloat
    """Exponent t of the row count: a source is drawn in proportion to weight * rows ** t. 1 is
    proportional to the rows; at 0 the weights under `sources` are the shares themselves."""
    log_every_steps: PositiveInt
    """Steps averaged into one point of the plotted curves."""
    checkpoint_every_steps: PositiveInt
    """Optimiser steps between two checkpoints that a stopped training resumes from."""
    seed: Seed

    @model_validator(mode="after")
    def _sub_batches_fit(self) -> Self:
        if (self.batches == "interleaved") != (self.sub_batches > 1):
            raise ValueError(
                f"sub_batches {self.sub_batches} with batches {self.batches}: interleaved needs 2 "
                "or more, the others 1"
            )
        if self.batch_size % self.sub_batches or self.batch_size < 2 * self.sub_batches:
            raise ValueError(
                f"batch_size {self.batch_size} must be {self.sub_batches} sub_batches of equal "
                "size with 2 queries or more"
            )
        return self

    @property
    def tokens_at_once(self) -> int:
        """Tokens per forward pass outside of a training, where no size is sought."""
        return UNSOUGHT_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @property
    def embeddings(self) -> EmbeddingMatching | None:
        """Term that matches the vectors of the teacher, if there is one."""
        return self.teacher.embeddings if self.teacher else None

    @property
    def fit_texts(self) -> int | None:
        """Texts that the projection is fitted to the teacher on, if it is."""
        return self.teacher.fit_texts if self.teacher else None

    @property
    def similarities(self) -> SimilarityMatching | None:
        """Term that matches the similarities of the teacher, if there is one."""
        return self.teacher.similarities if self.teacher else None

    @model_validator(mode="after")
    def _memory_fits(self) -> Self:
        if self.memory is not None and self.batches != "source":
            raise ValueError(
                f"memory with batches {self.batches}: documents of earlier batches are negatives "
                "within one source; set batches to source, or memory to null"
            )
        if self.memory is not None and self.guide is not None:
            raise ValueError(
                "memory with guide: a guide is not asked about documents of earlier batches; set "
                "one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _frozen_blocks_fit(self) -> Self:
        if self.frozen_blocks and self.lora is not None:
            raise ValueError(
                f"frozen_blocks {self.frozen_blocks} with lora: adapters of blocks that run once "
                "would not be trained; set one of them to 0 or null"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if self.contrastive_weight == 0 and self.teacher is None:
            raise ValueError(
                "contrastive_weight 0 without a teacher: nothing would be learnt; set one of them"
            )
        return self

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
    """How it trains."""
    sources: dict[Name, PositiveFloat] = Field(min_length=1)
    """Source of ingest.sources, or `synthetic`, to a factor on its sampling weight."""


STUDENT = "pretrain/model"
"""The model of stage 1 below artifacts/."""


class Mine(Section):
    """Section mine."""

    sources: list[Name] = Field(min_length=1)
    """Sources whose rows get negatives, each of task retrieval, nli or bitext."""
    model: str
    """Who says how near a document is: `pretrain/model`, the student of stage 1, or `teach/NAME`, a
    teacher, which knows better which documents answer."""
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
    """Tokens per forward pass."""
    seed: Seed

    @property
    def recorded_by(self) -> str | None:
        """Name of the teacher that says it, None for the student."""
        return recorded_by(self.model)

    @model_validator(mode="after")
    def _model_is_known(self) -> Self:
        if self.model != STUDENT and self.recorded_by is None:
            raise ValueError(f"model {self.model!r}: expected {STUDENT}, or {RECORDED}NAME")
        return self


class Variant(Section):
    """One specialist of stage 3."""

    sources: dict[Name, PositiveFloat] = Field(min_length=1)
    """Source to a factor on its sampling weight."""
    seed: Seed


class Multitask(Section):
    """Section multitask: one training recipe, one model per variant."""

    training: Training
    """How every variant trains; its seed gives way to that of the variant."""
    variants: dict[Name, Variant] = Field(min_length=1)
    """Name of each specialist to what it is trained on."""


class SelfPositioning(Section):
    """Search for the merged position in task-vector space (arXiv:2410.15035)."""

    steps: PositiveInt
    """Gradient steps of the search."""
    batch_size: PositiveInt
    """Queries per step."""
    learning_rate: PositiveFloat
    """Learning rate of Adam on the weights and the length factor."""
    size_penalty: NonNegativeFloat
    """mu: weight of the length factor lambda in the loss."""
    probe_examples: PositiveInt
    """Training rows that the loss is measured on."""
    temperature: PositiveFloat | None
    """Divides the cosine in the loss of the search; null takes that of the paper of that loss."""
    seed: Seed


class Merge(Section):
    """Section merge."""

    method: Literal["best", "uniform_soup", "slerp", "self_positioning"]
    """`slerp` is the middle of the arc between the task vectors of two variants, and keeps their
    length, which their mean does not. `best` builds every method and keeps the best, variants
    included, by the mean of nDCG@10, Spearman correlation and accuracy on the development split."""
    self_positioning: SelfPositioning
    """Values of the method self_positioning, which `best` tries as well."""
    development_examples: PositiveInt
    """Rows of the development split that the choice is made on: queries, pairs and labelled texts,
    so many of each."""


class Compute(Section):
    """Section compute: fixed, so that a run gives the same bytes again."""

    device: Literal["auto", "cpu", "cuda"]
    """Where torch computes; `auto` takes a GPU where there is one."""
    precision: Literal["auto", "bf16", "fp32"]
    """Type of the decoder's matrix products; weights and similarities are always float32. `auto`
    takes bf16 where the device has instructions for it, else fp32."""
    threads: PositiveInt
    """CPU threads of torch in each stage."""
    processes: PositiveInt
    """Processes of each contrastive training, one per GPU; the result is the same but for
    rounding."""
    parallel: Literal["ddp", "fsdp2"]
    """What the processes of a training hold: `ddp` all weights each, `fsdp2` a share of weights and
    moments, for a decoder that is too large for one GPU. It cannot size micro-batches by itself nor
    survive running out of memory."""
    compile_blocks: bool
    """Whether blocks of the decoder are compiled (torch.compile) in trainings, mining, evaluations.
    A step in bf16 took half the time on a GPU and two thirds on a CPU, after 16 and 40 seconds of
    compiling, 8 once the kernels of a CPU lie in torch's cache. A CPU needs g++ for it."""
