"""Refused rows, kept with their reason and counted."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tasks.contract.records import QUARANTINE_SCHEMA, normalise_text
from tasks.ingest.spool import Spool

CONTENT_CHARACTERS = 500
TOLD_ROWS = 3
"""Refused rows of a source that a message names."""


class Place(NamedTuple):
    """Where a row was read."""

    source: str
    file: str
    row: int


class Quarantine:
    """Collects refused rows; `counts` has the number of each reason per source."""

    def __init__(self, path: Path) -> None:
        """Keep the rows in the file `path` until `finish`."""
        self._spool = Spool(path, QUARANTINE_SCHEMA)
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._first: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, place: Place, reason: str, detail: str, content: str) -> None:
        """Refuse one row; of its content the first 500 characters are kept."""
        self.counts[place.source][reason] += 1
        if len(self._first[place.source]) < TOLD_ROWS:
            self._first[place.source].append(f"row {place.row} of {place.file}: {reason}, {detail}")
        self._spool.append(
            {
                **place._asdict(),
                "reason": reason,
                "detail": normalise_text(detail),
                "content": normalise_text(content[:CONTENT_CHARACTERS]),
            }
        )

    def told(self, source: str) -> str:
        """The counts and the first refused rows of a source, for a message.

        A run that stops leaves no quarantine behind, so the message must say why.
        """
        counts = dict(sorted(self.counts[source].items()))
        return f"{counts}; the first are {'; '.join(self._first[source])}"

    def finish(self) -> pa.Table:
        """Every refused row, in the order they were refused: by admission, then by assembly."""
        return self._spool.finish()
