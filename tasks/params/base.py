"""The base of every section of params.yaml and the value types they share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")  # noqa: TRY004 - pydantic's way
    return value


Integer = Annotated[int, Field(strict=True)]
PositiveInt = Annotated[Integer, Field(gt=0)]
NonNegativeInt = Annotated[Integer, Field(ge=0)]
Number = Annotated[float, BeforeValidator(_no_flag)]
"""Not strict: PyYAML reads 1e-5 as a string, which DVC takes for a number."""
PositiveFloat = Annotated[Number, Field(gt=0.0)]
NonNegativeFloat = Annotated[Number, Field(ge=0.0)]
Fraction = Annotated[Number, Field(ge=0.0, lt=1.0)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]
Seed = Annotated[
    Integer,
    Field(ge=0, description="Start of the random numbers: the same seed, the same result."),
]
Task = Literal["retrieval", "classification", "clustering", "sts", "nli", "bitext", "passages"]
"""What the rows of a source are."""
PASSAGES: Task = "passages"
"""Pairs of texts that nobody judged: what a teacher says of them is all there is to learn."""


def _name(value: str) -> str:
    allowed = value.replace("-", "").replace("_", "").replace(".", "")
    if not allowed.isalnum() or not value.isascii() or value.startswith("."):
        raise ValueError(f"{value!r} is no name: use latin letters, digits, '-', '_' and '.'")
    return value


Name = Annotated[str, AfterValidator(_name)]


class Section(BaseModel):
    """One mapping of params.yaml; frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
