"""Rows that say what an earlier row said.

Two texts are the same when their letters and digits are (records.match_key). Sources are read in
the order of params.yaml, and the first of equal rows stays:

- a document, when its text is the same, in any source;
- a classification or clustering row, when its text is the same in its source; a different label
  makes it a `label_conflict`;
- any other row, when query and positives are the same in any source of its task.
"""

import xxhash

from tasks.ingest.candidates import Candidate, RowRefusedError
from tasks.ingest.fingerprint import Fingerprint

_ROW_BITS = 40


class Duplicates:
    """Remembers rows in 64 bits each, and where the first of equal ones stands."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._files: list[str] = []

    def begin_file(self, name: str) -> None:
        """Rows that follow stand in the file `name`."""
        self._files.append(name)

    def check_document(self, row: int, key: int) -> None:
        """Remember the document whose text has the key `key`.

        Raises:
            RowRefusedError: An earlier document has the same text.
        """
        self._check("duplicate", row, "documents", key)

    def check_labelled(self, candidate: Candidate, source: str, key: int) -> None:
        """Remember a classification or clustering row whose text has the key `key`.

        Raises:
            RowRefusedError: The source has the text already, with this or another label.
        """
        self._check("duplicate", candidate.row, f"{source}\n{candidate.labels}", key)
        self._check("label_conflict", candidate.row, source, key)

    def check_pair(self, candidate: Candidate, task: str, prints: list[Fingerprint]) -> None:
        """Remember a row of another task; `prints` are those of its query and positives.

        Raises:
            RowRefusedError: An earlier row of the task has the same query and positives.
        """
        self._check("duplicate", candidate.row, task, *(print_.key for print_ in prints))

    def _check(self, reason: str, row: int, kind: str, *keys: int) -> None:
        content = kind.encode() + b"".join(key.to_bytes(8, "little") for key in keys)
        place = (len(self._files) - 1 << _ROW_BITS) + row
        first = self._first.setdefault(xxhash.xxh3_64_intdigest(content), place)
        if first != place:
            file = self._files[first >> _ROW_BITS]
            first_row = first & ((1 << _ROW_BITS) - 1)
            raise RowRefusedError(reason, f"same as row {first_row} of {file}")
