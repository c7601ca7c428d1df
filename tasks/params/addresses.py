"""Addresses in params.yaml: places of files, a path or s3://bucket/prefix, and web services.

They end up in logs, in reports and in .dvc/config.local, so none may hold a user or a password, and
no message about one repeats it.
"""

import os
from pathlib import PurePath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

ADDRESS_FAULT = "address"
"""Type of the faults found here: the value is not to be shown."""
PLAIN_REQUESTS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "WHEN_REQUIRED",
    "AWS_MAX_ATTEMPTS": "2",
}


def use_plain_requests() -> None:
    """Have S3 clients of this process and its children send what every service takes.

    botocore adds checksums that several services refuse, and tries five times what s3fs tries five
    times: 25 waits of a minute for a service that hangs. What the environment says already stays.
    """
    for name, value in PLAIN_REQUESTS.items():
        os.environ.setdefault(name, value)


def check_place(value: str) -> str:
    """The address of files as it was given: a path or s3://bucket/prefix.

    Any other scheme is refused: DVC, fsspec and pathlib each take `file:` and `~` for another
    folder, and the model would lie in one and its data in the other.

    Raises:
        ValueError: It is something else, or holds credentials; the message does not repeat it.
    """
    scheme, separator, rest = value.partition("://")
    if separator and scheme == "s3":
        _check_bucket(rest.split("/")[0])
    elif separator or value.startswith(("file:", "s3:")) or "::" in value:
        given = scheme.partition(":")[0][:10]
        raise _fault(
            f"an address that starts with {given!r}; expected a path or s3://bucket/prefix"
        )
    elif not value.strip() or value.startswith("~"):
        raise _fault(
            "an empty path or one with '~'; expected it written out, or s3://bucket/prefix"
        )
    return value


def check_service(value: str) -> str:
    """The address of a web service as it was given: http:// or https://.

    Raises:
        ValueError: It is something else, or holds credentials; the message does not repeat it.
    """
    if "@" in value:
        raise _fault(
            "a user or password in the address, which would be printed in logs and reports; keys "
            "come from the environment: SAMOVAR_LLM_API_KEY, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    try:
        parts = urlsplit(value)
        is_whole = bool(parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0)
    except ValueError:  # a port that is no number; the error would repeat it
        is_whole = False
    if not is_whole or value.split() != [value] or "?" in value or "#" in value:
        raise _fault("no address of a service; expected http(s)://host:port/path and no query")
    return value


def is_address(value: str) -> bool:
    """Whether a place is one of a bucket, and no path."""
    return "://" in value


def is_outside(value: str) -> bool:
    """Whether a place lies where no other checkout has it: in a bucket, or beyond this folder."""
    path = PurePath(value)
    return is_address(value) or path.is_absolute() or ".." in path.parts


def in_corpus(corpus: str, path: str) -> str:
    """Address of the path of a source, which is relative to the corpus unless it is a whole one."""
    return path if is_address(path) or path.startswith("/") else f"{corpus.rstrip('/')}/{path}"


def _check_bucket(bucket: str) -> None:
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise _fault(
            "keys in the address, which would be printed in logs and reports; expected "
            "s3://bucket/prefix, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY in the environment"
        )
    if not bucket.strip():
        raise _fault("an address without a bucket; expected s3://bucket/prefix")


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError(ADDRESS_FAULT, f"got {text}")  # pyright: ignore[reportArgumentType]  # wants a literal


Place = Annotated[str, AfterValidator(check_place)]
Service = Annotated[str, AfterValidator(check_service)]
