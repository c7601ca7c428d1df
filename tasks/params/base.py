"""The base of every section of params.yaml and the value types they share."""

import re
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
Task = Literal["retrieval", "classification", "clustering", "sts", "nli", "bitext"]


def _name(value: str) -> str:
    allowed = value.replace("-", "").replace("_", "").replace(".", "")
    if not allowed.isalnum() or not value.isascii() or value.startswith("."):
        raise ValueError(f"{value!r} is no name: use latin letters, digits, '-', '_' and '.'")
    return value


Name = Annotated[str, AfterValidator(_name)]


def _address(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    _no_credentials(rest if separator else "")
    if not value or (separator and scheme != "s3"):
        raise ValueError("expected a folder without a scheme, or s3://bucket/prefix")
    if separator and not rest.strip("/"):
        raise ValueError("names no bucket: expected s3://bucket/prefix")
    return value


def _service(value: str) -> str:
    scheme, _, rest = value.partition("://")
    _no_credentials(rest)
    if scheme not in {"http", "https"} or not rest.strip("/"):
        raise ValueError("expected http://host:port or https://host")
    return value


def _no_credentials(rest: str) -> None:
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            "holds a user or a password, and addresses are printed in logs and published reports: "
            "put credentials into the environment"
        )


def without_credentials(value: str) -> str:
    """The text with what stands before `@` in an address masked, for messages."""
    return _CREDENTIALS.sub("://***@", value)


_CREDENTIALS = re.compile(r"://[^/\s]*@")

Address = Annotated[str, AfterValidator(_address)]
"""A folder, or s3://bucket/prefix: what DVC, the stages and the registry all understand."""
ServiceUrl = Annotated[str, AfterValidator(_service)]
"""http:// or https://, without credentials."""


class Section(BaseModel):
    """One mapping of params.yaml; frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
