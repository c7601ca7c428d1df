"""One row of a source, read into the fields of the contract, or refused with a reason."""

import math
from dataclasses import dataclass, field

from tasks.contract.records import CLASS_TASKS, normalise_text
from tasks.ingest.readers import Unreadable, Values
from tasks.params.data import Ingest, Source

_SAME_TEXT_TASKS = {"retrieval", "nli", "bitext"}


class RowRefusedError(ValueError):
    """A row that goes to the quarantine; `reason` is counted, `detail` is for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class Candidate:
    """A row whose texts are normalised and of a good length."""

    row: int
    query: str = ""
    positives: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    title: str = ""
    text: str = ""
    labels: list[str] = field(default_factory=list)
    score: float | None = None

    @property
    def texts(self) -> list[str]:
        """Every text of the row: what must not come from an evaluation set."""
        texts = [self.query, *self.positives, *self.negatives, self.title, self.text]
        return [text for text in texts if text]


@dataclass(frozen=True)
class RowParser:
    """Makes candidates of the rows of one source."""

    source: Source
    limits: Ingest

    @property
    def columns(self) -> list[str]:
        """The columns of the file that are needed, each once."""
        return list(dict.fromkeys(self.source.fields.model_dump(exclude_none=True).values()))

    def parse(self, row: int, values: Values) -> Candidate:
        """The candidate of one row.

        Raises:
            RowRefusedError: A text is missing, of a wrong type or length, or the score is out of
                its range.
        """
        fields = self.source.fields
        if self.source.task == "documents":
            title = values.get(fields.title or "")
            text = self._text(values, fields.text)
            return Candidate(row, title=self._optional(title, "title"), text=text)
        candidate = Candidate(
            row,
            query=self._text(values, fields.query),
            positives=self._positives(values),
            negatives=self._negatives(values),
            labels=self._labels(values),
            score=self._score(values),
        )
        _refuse_degenerate(candidate, self.source.task)
        return candidate

    def _text(self, values: Values, column: str | None) -> str:
        return self._checked(values[column or ""], column or "")

    def _positives(self, values: Values) -> list[str]:
        column = self.source.fields.positive
        if column is None or self.source.task in CLASS_TASKS:
            return []
        given = values[column]
        items = given if isinstance(given, list) else [given]
        if not items:
            raise RowRefusedError("empty", f"{column} is an empty list")
        return list(dict.fromkeys(self._checked(item, column) for item in items))

    def _negatives(self, values: Values) -> list[str]:
        column = self.source.fields.negative
        given = values.get(column or "")
        items = given if isinstance(given, list) else [given]
        texts = [self._optional(item, column or "") for item in items]
        return list(dict.fromkeys(text for text in texts if text))

    def _optional(self, value: object, column: str) -> str:
        """The text, empty where there is none; only its greatest length is checked."""
        value = _decoded(value, column)
        if value is None or (isinstance(value, str) and not normalise_text(value)):
            return ""
        return self._checked(value, column, min_characters=1)

    def _checked(self, value: object, column: str, min_characters: int | None = None) -> str:
        value = _decoded(value, column)
        if not isinstance(value, str):
            raise RowRefusedError("invalid", f"{column} is {_kind(value)}, expected a text")
        text = normalise_text(value)
        if not text:
            raise RowRefusedError("empty", f"{column} is empty")
        if len(text) < (min_characters or self.limits.min_characters):
            detail = f"{column} has {len(text)} characters, fewer than ingest.min_characters"
            raise RowRefusedError("too_short", f"{detail} {self.limits.min_characters}")
        if len(text) > self.limits.max_characters:
            detail = f"{column} has {len(text)} characters, more than ingest.max_characters"
            raise RowRefusedError("too_long", f"{detail} {self.limits.max_characters}")
        return text

    def _labels(self, values: Values) -> list[str]:
        """The labels sorted, each once; numbers count as their decimal form.

        A whole number stored as 1.0 is the label 1: a column with nulls comes so from pandas.
        """
        column = self.source.fields.label
        if column is None:
            return []
        given = values[column]
        items = given if isinstance(given, list) else [given]
        labels: set[str] = set()
        for item in items:
            label = _decoded(item, column)
            if isinstance(label, float) and label.is_integer():
                label = int(label)
            if isinstance(label, bool | int | str):
                text = normalise_text(str(label))
                separator = self.source.label_separator
                labels.update(text.split(separator) if separator else [text])
            else:
                raise RowRefusedError("invalid", f"{column} is {_kind(item)}, expected a label")
        labels = {label.strip() for label in labels} - {""}
        if not labels:
            raise RowRefusedError("empty", f"{column} holds no label")
        return sorted(labels)

    def _score(self, values: Values) -> float | None:
        column = self.source.fields.score
        if column is None:
            return None
        given = values[column]
        try:
            score = float(given)  # pyright: ignore[reportArgumentType]  # what it is shows here
        except (TypeError, ValueError):
            detail = f"{column} is {_kind(given)}, expected a number"
            raise RowRefusedError("invalid", detail) from None
        low, high = self.source.score_range
        if math.isnan(score) or not low <= score <= high:
            detail = f"{column} is {score}, expected {low} to {high}"
            raise RowRefusedError("score_out_of_range", detail)
        return (score - low) / (high - low)


def _decoded(value: object, column: str) -> object:
    """A text of a binary column as a text, anything else as it is."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise RowRefusedError("invalid_utf8", f"{column} is not valid UTF-8") from None


def _refuse_degenerate(candidate: Candidate, task: str) -> None:
    if task in _SAME_TEXT_TASKS and candidate.query in candidate.positives:
        raise RowRefusedError("same_text", "query and positive are the same text")
    if set(candidate.positives) & set(candidate.negatives):
        raise RowRefusedError("negative_is_positive", "a negative equals a positive")


def _kind(value: object) -> str:
    if isinstance(value, Unreadable):
        return str(value)
    return "null" if value is None else f"{type(value).__name__} {str(value)[:50]!r}"
