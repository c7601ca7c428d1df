"""The items of one JSON array, however large, a piece of the file in memory at a time."""

import json
import re
from collections.abc import Iterator
from typing import TextIO

import pyarrow as pa

CHUNK_CHARACTERS = 1 << 16
MAX_ITEM_CHARACTERS = 1 << 26
"""An item that does not end within this is broken: reading on would hold the file in memory."""

_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def is_array(sample: str) -> bool:
    """Whether a file that begins so is one array and not a value per line.

    A line `[1, 2]` is such a value; an array opens its first object, or ends its line before it.
    """
    text = sample.lstrip(" \t\r\n")
    return text.startswith("[") and text[1:].lstrip(" \t")[:1] in {"{", "\r", "\n"}


def array_items(file: TextIO) -> Iterator[object]:
    """Every item of the array that a file holds.

    Raises:
        pa.ArrowInvalid: The array is broken or cut off; the items before the fault came out.
    """
    pieces = _Pieces(file)
    pieces.take("[")
    count = 0
    while not pieces.take("]"):
        if count and not pieces.take(","):
            raise pa.ArrowInvalid(f"no comma after item {count - 1} of its array")
        try:
            item = pieces.item()
        except (ValueError, RecursionError) as error:
            raise pa.ArrowInvalid(f"item {count} of its array: {error}") from None
        yield item
        count += 1
    if pieces.rest():
        raise pa.ArrowInvalid(f"text follows its array of {count} items")


class _Pieces:
    """A file of which the part not yet taken is known."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._buffer = ""
        self._start = 0

    def take(self, char: str) -> bool:
        """Whether `char` comes next after blanks; if so it is passed over."""
        found = self.rest() == char
        self._start += found
        return found

    def rest(self) -> str:
        """The next character after blanks, empty at the end."""
        while True:
            self._start = _end_of_blanks(self._buffer, self._start)
            if self._start < len(self._buffer) or not self._read(CHUNK_CHARACTERS):
                return self._buffer[self._start : self._start + 1]

    def item(self) -> object:
        """The next value."""
        self.rest()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._start)
            except json.JSONDecodeError:
                # either it is broken or it goes on; twice as much keeps the tries few
                waiting = len(self._buffer) - self._start
                too_long = waiting > MAX_ITEM_CHARACTERS
                if too_long or not self._read(max(waiting, CHUNK_CHARACTERS)):
                    raise
                continue
            # a number may go on in the next piece
            if end < len(self._buffer) or not self._read(CHUNK_CHARACTERS):
                self._start = end
                return value

    def _read(self, size: int) -> bool:
        """Whether there was more of the file."""
        more = self._file.read(size)
        self._buffer = self._buffer[self._start :] + more
        self._start = 0
        return bool(more)


def _end_of_blanks(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start
