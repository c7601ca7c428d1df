"""Answers of a language model by the hash of what was asked: none is paid for twice."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.contract.stage import StageError

Messages = list[dict[str, str]]
"""What a chat is asked."""
LINE_END = "\n"
"""Where a completion ends; the answer to a prompt has it unless it was cut off before."""

BUSY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Prompt:
    """What a model is asked to go on from, to the end of the line."""

    text: str
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the model said, and the tokens that were charged."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def question_key(model: str, temperature: float, question: Messages | Prompt) -> str:
    """sha256 of everything that decides an answer; the address of the endpoint does not."""
    asked = asdict(question) if isinstance(question, Prompt) else question
    content = json.dumps([model, temperature, asked], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


class AnswerCache:
    """An append-only SQLite file; each answer is on disk before `put` returns.

    Several processes may use one file. A process killed at any moment loses no answer that was
    put, and leaves the file sound.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use an open connection; see `open_cache`."""
        self._connection = connection

    def get(self, key: str) -> Answer | None:
        """The answer stored under `key`."""
        query = "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?"
        row = self._connection.execute(query, (key,)).fetchone()
        return None if row is None else Answer(*row)

    def put(self, key: str, answer: Answer) -> None:
        """Store an answer; the first one under a key stays."""
        row = (key, answer.text, answer.prompt_tokens, answer.completion_tokens)
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)


@contextlib.contextmanager
def open_cache(path: Path) -> Iterator[AnswerCache]:
    """Open the cache, or begin one.

    Raises:
        StageError: The file is no such cache, or is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
            # A log that is written first, and synced at each commit: safe against SIGKILL and
            # against a power cut.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL,"
                " prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"
                " WITHOUT ROWID"
            )
            yield AnswerCache(connection)
    except sqlite3.DatabaseError as error:
        raise StageError(
            f"the cache of answers {path} cannot be used ({error}): free the disk if it is full, "
            "else move the file away; what it holds would have to be asked again"
        ) from error
