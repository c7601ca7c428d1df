"""params.yaml as frozen, typed sections: the only place that reads the file.

Every section belongs to one stage and names it; `data`, `prompts`, `compute` and `store` are shared.
An unknown key, a missing value or an impossible one is an error that names the file, the key, what
was given and what was expected.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

PARAMS_FILE = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Task = Literal["retrieval", "classification", "clustering", "sts", "nli", "bitext"]


def _name(value: str) -> str:
    allowed = value.replace("-", "").replace("_", "").replace(".", "")
    if not allowed.isalnum() or not value.isascii() or value.startswith("."):
        raise ValueError(f"{value!r} is no name: use latin letters, digits, '-', '_' and '.'")
    return value


Name = Annotated[str, AfterValidator(_name)]


class ParamsError(ValueError):
    """params.yaml is missing, unreadable or holds a value that cannot be used."""


class Section(BaseModel):
    """One mapping of params.yaml; frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Data(Section):
    """Section data: where the corpora and the benchmark lie (folder or s3:// address)."""

    corpus: str
    """Folder of the training sources; the paths of ingest.sources are relative to it."""
    benchmark: str
    """Folder of the evaluation tasks in the layout of the hub, one folder per task."""


class Fields(Section):
    """Which column of a source holds what; null where the source has no such column."""

    query: str | None = None
    positive: str | None = None
    negative: str | None = None
    label: str | None = None
    score: str | None = None
    title: str | None = None
    text: str | None = None


class Source(Section):
    """One declared corpus: a file, a glob, a `datasets` folder or an s3:// address."""

    path: str
    """Relative to data.corpus, absolute, or s3://; a glob may match several files."""
    format: Literal["parquet", "jsonl", "csv", "datasets"]
    task: Task | Literal["documents"]
    """What its rows are; `documents` rows have a title and a text and no query."""
    fields: Fields
    lang: str | None = None
    """BCP 47 tag of every row; null asks the language identifier row by row."""
    label_separator: str | None = None
    """Splits a multi-label column into its labels; null keeps one label per row."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest value of the score column, mapped to [0, 1]."""
    max_rows: PositiveInt | None = None
    """Rows kept, the first by content hash; null keeps all."""
    also_documents: bool = False
    """Whether each positive also becomes a document of the mining corpus."""

    @model_validator(mode="after")
    def _columns_fit_the_task(self) -> Self:
        needed = {
            "documents": ("text",),
            "classification": ("query", "label"),
            "clustering": ("query", "label"),
            "sts": ("query", "positive", "score"),
        }.get(self.task, ("query", "positive"))
        missing = [name for name in needed if getattr(self.fields, name) is None]
        if missing:
            raise ValueError(f"a source of task {self.task!r} must map the fields {missing}")
        return self


class Ingest(Section):
    """Section ingest."""

    sources: dict[Name, Source] = Field(min_length=1)
    languages: list[str] = Field(min_length=1)
    """BCP 47 tags that are kept; any other language goes to the quarantine."""
    min_characters: PositiveInt
    """Shorter queries, positives and documents go to the quarantine."""
    max_characters: PositiveInt
    """Longer ones as well."""
    overlap_words: PositiveInt
    """A shared run of this many words with an evaluation text removes a row (13 in the field)."""
    class_negatives: PositiveInt
    """Examples of other classes given to each classification and clustering row."""
    development_fraction: Fraction
    """Share of the examples kept out of training, by hash of the query; merge chooses on them."""
    shard_rows: PositiveInt
    """Rows per Parquet shard."""
    seed: NonNegativeInt


class Validate(Section):
    """Section validate: bounds of the Great Expectations suites."""

    min_examples: PositiveInt
    min_documents: PositiveInt
    max_query_characters: PositiveInt
    max_positive_characters: PositiveInt
    max_duplicate_share: Share
    """Share of example rows whose query and positive stand in an earlier row."""
    language_share: dict[str, Share]
    """Smallest share of the examples each language must have."""
    max_quarantine_share: Share
    """Share of the read rows that ingest may reject."""


class Endpoint(Section):
    """An OpenAI-compatible chat endpoint; the key comes from SAMOVAR_LLM_API_KEY."""

    base_url: str
    model: str
    concurrency: PositiveInt
    """Requests in flight."""
    timeout_s: PositiveFloat
    max_retries: NonNegativeInt
    max_backoff_s: PositiveFloat
    temperature: NonNegativeFloat
    min_score: Annotated[int, Field(ge=1, le=5)]
    """Smallest grade of the judge, 1 to 5, that keeps a query."""


class Synthesize(Section):
    """Section synthesize; without an endpoint the offline generator writes the queries."""

    endpoint: Endpoint | None
    max_documents: NonNegativeInt
    queries_per_document: PositiveInt
    seed: NonNegativeInt


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
    pooling: Literal["mean", "last", "latent"]
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
            raise ValueError("source: scratch needs a mapping under scratch:, any other source null")
        return self


class Prune(Section):
    """Section prune."""

    fraction: Fraction
    """Share of the blocks removed; 0 keeps all."""
    method: Literal["block_influence", "angular_distance", "deepest"]
    calibration_documents: PositiveInt
    max_length_tokens: PositiveInt


class Training(Section):
    """One contrastive training: sections pretrain and finetune, and multitask.training."""

    max_steps: PositiveInt
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=2)]
    """Queries per optimiser step, all of one source."""
    micro_batch_tokens: PositiveInt
    """Tokens, padding included, per forward pass."""
    max_length_tokens: PositiveInt
    learning_rate: PositiveFloat
    min_learning_rate_share: Share
    """Learning rate at the last step over its peak."""
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    gradient_clip_norm: PositiveFloat
    temperature: PositiveFloat
    """Divides the cosine."""
    hard_negatives: NonNegativeInt
    """Explicit negatives per query; a row with fewer gives what it has."""
    matryoshka_dims: list[PositiveInt]
    """Prefix sizes trained beside the full size; may be empty."""
    source_temperature: PositiveFloat
    """Exponent of the row count in the sampling weight of a source; 1 is proportional."""
    precision: Literal["bf16", "fp32"]
    """Autocast type of the decoder; similarities are always float32."""
    log_every_steps: PositiveInt
    checkpoint_every_steps: PositiveInt
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below max_steps {self.max_steps}")
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
    batch_tokens: PositiveInt


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


class Baseline(Section):
    """Section baseline: the two rungs below every model."""

    ngram_range: tuple[PositiveInt, PositiveInt]
    """Shortest and longest character n-gram of TF-IDF."""
    components: PositiveInt
    """Dimensions kept by SVD, and of the random vectors."""
    max_texts: PositiveInt
    seed: NonNegativeInt


class Evaluate(Section):
    """Section evaluate."""

    tasks: dict[Name, str] = Field(min_length=1)
    """Folder name below data.benchmark to the mteb task whose class and metadata it takes."""
    checkpoints: dict[Name, str] = Field(min_length=1)
    """Rung of the ladder to its folder below artifacts/, lowest rung first."""
    task_prompts: dict[str, str]
    """Instruction per evaluation task; a task that is not listed gets prompts.tasks by its type."""
    batch_tokens: PositiveInt
    max_length_tokens: PositiveInt
    seed: NonNegativeInt


class Report(Section):
    """Section report."""

    example_task: Name
    """Retrieval task of evaluate.tasks whose queries are shown with retrieved passages."""
    before: Name
    """Rung shown as `before`."""
    after: Name
    """Rung shown as `after`, and published."""
    example_queries: PositiveInt


class Gate(Section):
    """Section gate."""

    candidate: Name
    """Rung of evaluate.checkpoints that is judged."""
    min_mean_gain: float
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
    """Folder below artifacts/ that is published."""


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


class Compute(Section):
    """Section compute: fixed, so that a run gives the same bytes again."""

    device: Literal["auto", "cpu", "cuda"]
    threads: PositiveInt
    """CPU threads of torch in each stage."""


class Store(Section):
    """Section store: where artifacts and published models live; keys come from the environment."""

    url: str
    """A folder or s3://bucket/prefix."""
    endpoint_url: str | None
    """Address of an S3 service other than AWS."""


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    synthesize: Synthesize
    backbone: Backbone
    prune: Prune
    prompts: Prompts
    pretrain: Stage
    mine: Mine
    finetune: Stage
    multitask: Multitask
    merge: Merge
    baseline: Baseline
    evaluate: Evaluate
    gate: Gate
    report: Report
    publish: Publish
    compute: Compute
    store: Store

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        known = {*self.ingest.sources, "synthetic"}
        used = {
            "pretrain.sources": set(self.pretrain.sources),
            "finetune.sources": set(self.finetune.sources),
            "mine.sources": set(self.mine.sources),
            **{
                f"multitask.variants.{name}.sources": set(variant.sources)
                for name, variant in self.multitask.variants.items()
            },
        }
        for where, names in used.items():
            if names - known:
                raise ValueError(f"{where} names {sorted(names - known)}; known are {sorted(known)}")
        rungs = set(self.evaluate.checkpoints)
        wanted = {self.gate.candidate, *self.gate.must_beat, self.report.before, self.report.after}
        if wanted - rungs:
            raise ValueError(f"{sorted(wanted - rungs)} are no rungs of evaluate.checkpoints")
        if self.report.example_task not in self.evaluate.tasks:
            raise ValueError(f"report.example_task {self.report.example_task!r} is not in evaluate.tasks")
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: The file is missing, is no YAML mapping, or a value is wrong; the message
            lists every fault with its key, what was given and what was expected.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path} does not exist: copy one of infra/profiles/ (make profile NAME=sample)"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must hold a mapping of sections, got {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(_describe(fault) for fault in error.errors())
        raise ParamsError(f"{path} has {error.error_count()} faults:\n{faults}") from None


def _describe(fault: object) -> str:
    assert isinstance(fault, dict)
    key = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
    given = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
    hint = " (unknown key: remove it or correct its spelling)" if fault["type"] == "extra_forbidden" else ""
    return f"  {key}: {fault['msg']}{given}{hint}"
