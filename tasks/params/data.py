"""Sections of the data stages: where the corpora lie, how they are read, checked and extended."""

import codecs
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tasks.params.addresses import Place
from tasks.params.base import (
    Fraction,
    Integer,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveInt,
    Section,
    Seed,
    Share,
    Task,
)
from tasks.params.server import Server


class Data(Section):
    """Section data: where the corpora and the benchmark lie (folder or s3:// address)."""

    corpus: Place
    """Folder of the training sources; the paths of ingest.sources are relative to it."""
    benchmark: Place
    """Folder of the evaluation tasks in the layout of the hub, one folder per task."""


class Fields(Section):
    """Which column of a source holds what.

    A key that is left out means that the source has no such column; no source has all seven.
    """

    query: str | None = None
    """Column of the queries, or of the first texts of pairs."""
    positive: str | None = None
    """Column of the texts that fit the query: one, or a list of them."""
    negative: str | None = None
    """Column of the texts that do not fit it: one, or a list of them."""
    label: str | None = None
    """Column of the classes or clusters."""
    score: str | None = None
    """Column of the graded similarities, in the units of score_range."""
    title: str | None = None
    """Column of the document titles."""
    text: str | None = None
    """Column of the document texts."""


def _no_spreadsheet(value: object) -> object:
    if value in {"xlsx", "xls", "ods"}:
        raise ValueError("a spreadsheet is not read: save its table as CSV or Parquet")
    return value


def _text_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError:
        raise ValueError(
            f"{value!r} is no encoding of texts: give its name in Python, such as cp1251 or utf-16"
        ) from None
    return codecs.lookup(value).name


LEFT_OUT_TASKS = ("retrieval", "nli", "bitext", "sts")
"""Tasks whose rows can be judged without training rows of the same source."""


class Source(Section):
    """One declared corpus: a file, a glob, a `datasets` folder or an s3:// address.

    Keys with a default switch on what few corpora need; left out, the rows are taken as they are.
    """

    path: Place
    """Relative to data.corpus, absolute, or s3://; a glob may match several files."""
    format: Annotated[
        Literal["parquet", "jsonl", "csv", "datasets"], BeforeValidator(_no_spreadsheet)
    ]
    """How the files are read; `jsonl` may also be one JSON array, `csv` any separator (TSV), and
    `datasets` is a folder that `save_to_disk` wrote."""
    task: Task | Literal["documents"]
    """What its rows are; `documents` rows have a title and a text and no query."""
    fields: Fields
    """Columns of the files."""
    lang: str | None = None
    """BCP 47 tag of every row; null asks the language identifier row by row."""
    encoding: Annotated[str, AfterValidator(_text_encoding)] | None = None
    """Of a csv or jsonl source, such as cp1251; null sees it in the file, UTF-8 or Russian."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What separates the columns of a csv source; null sees it in the header."""
    label_separator: str | None = None
    """Splits a multi-label column into its labels; null keeps one label per row."""
    score_range: tuple[Number, Number] = (0.0, 1.0)
    """Lowest and highest value of the score column, mapped to [0, 1]."""
    max_rows: PositiveInt | None = None
    """Rows kept, the first by content hash; null keeps all."""
    also_documents: bool = False
    """Whether each positive also becomes a document of the mining corpus."""
    passages: PositiveInt | None = None
    """Pairs of a sentence and what follows it that documents give, to imitate a teacher on in the
    trainings that name the source; null gives none."""
    left_out: bool = False
    """Whether no row of it is trained on: its development rows tell how a model does on texts that
    resemble nothing it learnt from."""

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
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError(f"score_range {list(self.score_range)} must rise")
        return self

    @model_validator(mode="after")
    def _passages_are_of_documents(self) -> Self:
        if self.passages is not None and self.task != "documents":
            raise ValueError(
                f"passages cuts documents into pairs, but the task is {self.task}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _left_out_is_judged(self) -> Self:
        if self.left_out and (self.task not in LEFT_OUT_TASKS or self.also_documents):
            raise ValueError(
                f"left_out is for sources of {', '.join(LEFT_OUT_TASKS)} without also_documents, "
                f"not for task {self.task}{' with it' if self.also_documents else ''}: its rows "
                "are judged, and none of its texts may reach a training"
            )
        return self


Overlap = Literal["everything", "judged", "queries"]
"""Texts of an evaluation task that training must not hold: all; its queries and the documents in
its qrels; or its queries alone."""


class Ingest(Section):
    """Section ingest."""

    sources: dict[Name, Source] = Field(min_length=1)
    """Name of each corpus, as the stages call it, to where it lies and what it holds."""
    languages: list[str] = Field(min_length=1)
    """BCP 47 tags that are kept; any other language goes to the quarantine."""
    min_characters: PositiveInt
    """Shorter queries, positives and documents go to the quarantine."""
    max_characters: PositiveInt
    """Longer ones as well."""
    overlap_words: PositiveInt
    """A shared run of this many words with an evaluation text removes a row (13 in the field)."""
    overlap: dict[str, Overlap]
    """Texts that are compared, per evaluation task; everything where a task is not listed.

    A task made of one's own knowledge base shares its documents with the training: `judged` or
    `queries` leaves them there.
    """
    max_overlap_share: Share
    """Share of the rows of a source that evaluation texts may remove."""
    class_negatives: PositiveInt
    """Examples of other classes given to each classification and clustering row."""
    development_fraction: Fraction
    """Share of the examples kept out of training, by hash of the query; merge chooses on them."""
    shard_rows: PositiveInt
    """Rows per Parquet shard."""
    seed: Seed

    @property
    def has_examples(self) -> bool:
        """Whether a source holds examples; with documents alone all examples are synthetic."""
        return any(source.task != "documents" for source in self.sources.values())

    @model_validator(mode="after")
    def _some_length_is_kept(self) -> Self:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters {self.min_characters} is above max_characters "
                f"{self.max_characters}: no text could stay"
            )
        return self


class Validate(Section):
    """Section validate: bounds of the Great Expectations suites."""

    min_examples: PositiveInt
    """Fewest rows of examples, training split."""
    min_documents: PositiveInt
    """Fewest rows of documents."""
    max_query_characters: PositiveInt
    """Longest query, in characters."""
    max_positive_characters: PositiveInt
    """Longest positive, in characters."""
    max_duplicate_share: Share
    """Share of example rows whose query and positive stand in an earlier row."""
    language_share: dict[str, Share]
    """Smallest share of the examples each language must have."""
    max_quarantine_share: Share
    """Share of the read rows that ingest may reject."""


API_KEY_VARIABLE = "SAMOVAR_LLM_API_KEY"
"""Environment variable with the key of the endpoint."""


class Chat(Section):
    """POST /chat/completions of an instruction-tuned model: it plans, writes and judges a query."""

    kind: Literal["chat"]
    """An instruction-tuned model is talked to."""
    min_score: Annotated[Integer, Field(ge=1, le=5)]
    """Smallest grade of the judge, 1 to 5, that keeps a query."""


class Completion(Section):
    """POST /completions of any language model: it goes on from passages with their queries."""

    kind: Literal["completion"]
    """A model goes on from where a text ends."""
    examples: dict[str, Name] = Field(min_length=1)
    """Source of the documents to its examples, a file of tasks/synthesize/few_shot without .txt."""
    styles: list[Literal["keywords", "question", "headline"]] = Field(min_length=1)
    """Kinds of queries, taken in turn."""
    passage_characters: PositiveInt
    """Start of a document that is shown, cut where a sentence ends."""
    max_tokens: PositiveInt
    """Longest answer; a query that has not ended there is dropped."""


class Endpoint(Server):
    """A server with OpenAI's interface; its key comes from the environment."""

    interface: Annotated[Chat | Completion, Field(discriminator="kind")]
    """What of it is asked, and how."""
    temperature: NonNegativeFloat
    """Sampling temperature of the writer; 0 is greedy."""


class RoundTrip(Section):
    """A query is kept if a teacher finds its document by it."""

    teacher: Name
    """One of teach.teachers; it is asked here, and its vectors are kept for the stage teach."""
    top_k: PositiveInt
    """Its document must be among so many nearest."""
    pool: PositiveInt
    """Other documents among which it is looked for; all where the corpus has fewer."""

    @model_validator(mode="after")
    def _some_can_fail(self) -> Self:
        if self.pool < self.top_k:
            raise ValueError(f"pool {self.pool} is below top_k {self.top_k}: all would pass")
        return self


class Synthesize(Section):
    """Section synthesize; without an endpoint the offline generator writes the queries."""

    endpoint: Endpoint | None
    """Where the LLM answers; null takes the offline generator."""
    round_trip: RoundTrip | None
    """Filter by a teacher; null keeps what passes the other rules."""
    max_documents: NonNegativeInt
    """Documents that queries are written for; 0 writes none."""
    queries_per_document: PositiveInt
    """Queries written per document."""
    seed: Seed
