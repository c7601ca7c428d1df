"""How the text of a file is encoded, and what stands between the columns of a CSV file.

Both are declared in params.yaml or seen in the first bytes of the file: a byte order mark, UTF-8,
or one of the Russian encodings of 8 bits; the separator is the one that gives the header its
columns. What was taken is logged wherever it is not UTF-8 with commas.
"""

import codecs
import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, NamedTuple

import pyarrow as pa

UTF_8 = "utf-8-sig"
"""UTF-8 with or without a byte order mark."""
SAMPLE_BYTES = 1 << 18
SEPARATORS = (",", ";", "\t", "|")

FEWEST_LETTERS = 20
"""Letters of 8 bits that show an encoding; fewer may be damage to a file of UTF-8."""
RUN_SHARE = 0.6
"""Share of them that stand in runs of small letters, as words do: a wrong encoding makes capitals
and signs of these, and the accents of a western one stand alone."""

_MARKS = {
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Marks in the order they are tried: that of UTF-32 begins with that of UTF-16."""
_ASCII = bytes(range(128))
_EIGHT_BITS = ("cp1251", "koi8-r", "cp866")
_BINARY = {b"PK\x03\x04": "a spreadsheet (xlsx) or zip archive", b"\xd0\xcf\x11\xe0": "an xls file"}
_RUN = re.compile("[а-яё]{2,}")
_UNDECODED = re.compile("[\udc80-\udcff]")

logger = logging.getLogger(__name__)


class EncodingError(ValueError):
    """A file is no text, or of an encoding that must be declared; the message says which."""


@dataclass(frozen=True)
class Dialect:
    """What params.yaml declares of a source; None is seen in each file."""

    encoding: str | None = None
    separator: str | None = None


SEEN = Dialect()


class Text(NamedTuple):
    """A file as text."""

    file: io.TextIOWrapper
    r"""Only \n ends a line; an undecodable byte is a lone surrogate, see `is_undecoded`."""
    sample: str
    """Its beginning."""
    encoding: str
    """Its name, for messages."""


@contextmanager
def open_text(file: IO[bytes], name: str, dialect: Dialect) -> Iterator[Text]:
    """Decode a file from its start; it is closed at the end.

    Raises:
        EncodingError: The file is a spreadsheet, or its encoding cannot be seen.
        pa.ArrowInvalid: It is no text.
    """
    sample = file.read(SAMPLE_BYTES)
    file.seek(0)
    for magic, what in _BINARY.items():
        if sample.startswith(magic):
            raise EncodingError(f"is {what}, no text: save its table as CSV or Parquet")
    if b"\0" in sample[:2] and dialect.encoding is None and not sample.startswith(tuple(_MARKS)):
        raise EncodingError(
            "is no text, or UTF-16 without a mark: set `encoding` of its source to utf-16-le"
        )
    encoding = dialect.encoding or _seen_encoding(sample)
    if encoding != UTF_8:
        how = "declared" if dialect.encoding else "seen"
        logger.info("%s: read in the encoding %s (%s)", name, encoding, how)
    # a character that the sample cuts in two is no fault of the file
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    # only \n ends a line: U+2028 and others are text
    with io.TextIOWrapper(file, encoding, "surrogateescape", newline="\n") as text:  # pyright: ignore[reportArgumentType]  # opened "rb"
        yield Text(text, decoder.decode(sample), encoding.removesuffix("-sig"))


def is_undecoded(text: str) -> bool:
    """Whether a byte of the text could not be decoded."""
    return not text.isascii() and _UNDECODED.search(text) is not None


def seen_separator(text: Text, columns: list[str] | None) -> str:
    """The separator that gives the header the wanted columns, else the most columns.

    Raises:
        EncodingError: The header cannot be decoded.
    """
    if is_undecoded(text.sample.partition("\n")[0]):
        raise EncodingError(
            f"is not in the encoding {text.encoding}: set `encoding` of its source, such as "
            "cp1251 or utf-16-le"
        )
    headers = {separator: _header(text.sample, separator) for separator in SEPARATORS}
    # the first of equals, so a comma where nothing tells them apart
    return max(
        SEPARATORS,
        key=lambda separator: (
            set(columns or ()) <= set(headers[separator]),
            len(headers[separator]),
        ),
    )


def _header(sample: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(sample, newline=""), delimiter=separator, strict=True))
    except (csv.Error, StopIteration):
        return []


def _seen_encoding(sample: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if sample.startswith(mark):
            return encoding
    text = sample.decode("utf-8", "surrogateescape")
    kinds = Counter("bad" if is_undecoded(char) else "good" for char in text if char > "\x7f")
    # a damaged file of UTF-8 has its whole characters too; text of 8 bits has next to none
    if kinds["bad"] < FEWEST_LETTERS or kinds["bad"] <= kinds["good"]:
        return UTF_8
    if b"\0" in sample:
        raise pa.ArrowInvalid("it holds bytes that are no text")
    high = len(sample.translate(None, delete=_ASCII))
    shares = {
        encoding: sum(map(len, _RUN.findall(sample.decode(encoding, "replace")))) / high
        for encoding in _EIGHT_BITS
    }
    best = max(_EIGHT_BITS, key=shares.__getitem__)
    if shares[best] < RUN_SHARE:
        raise EncodingError(
            "is not in the encoding utf-8 and shows no other clearly: set `encoding` of its "
            "source, such as cp1251"
        )
    return best
