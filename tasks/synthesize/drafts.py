"""What a generator takes and gives: documents and drafts of queries."""

from collections import Counter
from dataclasses import dataclass, field

from tasks.synthesize.cache import Answer


@dataclass(frozen=True)
class Document:
    """One row of artifacts/ingest/documents."""

    id: str
    source: str
    lang: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text; the text alone where it starts with the title, or there is none."""
        if not self.title or self.text.startswith(self.title):
            return self.text
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True)
class Draft:
    """A query written for a document."""

    kind: str
    """How it was asked for: `title`, `keywords`, `yes_or_no`, ..."""
    lang: str
    query: str
    positive: str


@dataclass
class Drafts:
    """The drafts of several documents, in their order, and why others were not kept."""

    kept: list[Draft] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason to number of queries."""
    usage: Counter[str] = field(default_factory=Counter)
    """Answers of a language model and their tokens."""

    def count(self, answer: Answer) -> None:
        """Add an answer to the usage."""
        self.usage["answers"] += 1
        self.usage["prompt_tokens"] += answer.prompt_tokens
        self.usage["completion_tokens"] += answer.completion_tokens

    def extend(self, other: "Drafts") -> None:
        """Append the drafts of further documents."""
        self.kept += other.kept
        self.rejected += other.rejected
        self.usage += other.usage
