"""A teacher behind an embeddings endpoint: a bounded number of requests at a time."""

import asyncio
import logging
import os
from collections.abc import Iterator

import openai

from model.training.data.recorded_vectors import Shown
from tasks.contract.stage import StageError
from tasks.endpoint.calls import Calls
from tasks.endpoint.failures import HopelessError, PromptRefusedError, UnusableResponseError
from tasks.params.teach import TeacherEndpoint
from tasks.teach.answer import Embedded, read_response
from tasks.teach.cache import VectorCache
from tasks.teach.vectors import Keep, shown

NO_TEXT = " "
"""Sent for an empty text, which OpenAI's own endpoint refuses."""

logger = logging.getLogger(__name__)


class EndpointTeacher:
    """Shows texts to an endpoint and keeps each answer as it comes."""

    def __init__(self, name: str, settings: TeacherEndpoint, cache: VectorCache) -> None:
        """Nothing is sent yet.

        Raises:
            StageError: The environment does not hold its key.
        """
        self._key = os.environ.get(settings.key_variable) if settings.key_variable else None
        if settings.key_variable and not self._key:
            raise StageError(
                f"teach.teachers.{name}.key_variable names {settings.key_variable}, which the "
                "environment does not hold: export it, or set key_variable to null"
            )
        self._name = name
        self._settings = settings
        self._cache = cache

    def answer(self, batches: Iterator[list[Shown]], keep: Keep) -> None:
        """Ask about the texts of all batches.

        Raises:
            StageError: The endpoint is of no use; what it answered was kept.
            OSError: The disk is full; what was kept before stays.
        """
        asyncio.run(self._answer_all(batches, keep))

    async def _answer_all(self, batches: Iterator[list[Shown]], keep: Keep) -> None:
        calls = Calls(
            self._settings,
            key_variable=self._settings.key_variable or "key_variable",
            api_key=self._key,
            wanted="list of vectors",
            request="POST /embeddings",
        )

        async def work() -> None:
            for batch in batches:  # all workers take from one
                try:
                    await self._answer_one(batch, calls, keep)
                except StageError:
                    # Other workers finish the request they have paid for, then stop as well.
                    return

        try:
            await asyncio.gather(*(work() for _ in range(self._settings.concurrency)))
        finally:
            await calls.close()
        logger.info("%s: requests %s", self._name, dict(sorted(calls.counts.items())))
        if calls.failure is not None:
            raise StageError(f"teach.teachers.{self._name}: {calls.failure}") from calls.failure

    async def _answer_one(self, batch: list[Shown], calls: Calls, keep: Keep) -> None:
        """Ask about a batch; one that is refused, about its halves, until the text is found."""
        texts = [self._as_sent(*each) for each in batch]
        try:
            embedded = await calls.send(lambda client: self._request(client, texts))
        except PromptRefusedError as error:
            if len(batch) == 1:
                raise calls.give_up(
                    f"it refuses the text {shown(batch[0][1])}, of {len(texts[0])} characters with "
                    f"its prompt ({error}). If that is too long for it, set a lower "
                    "max_characters or let the server cut texts; if it refuses others too, check "
                    "model and dimensions"
                ) from error
            logger.info("%s: %d texts are refused at once (%s)", self._name, len(batch), error)
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                await self._answer_one(part, calls, keep)
            return
        keep(batch, embedded.vectors, embedded.tokens)
        calls.counts["answered"] += 1

    async def _request(self, client: openai.AsyncOpenAI, texts: list[str]) -> Embedded:
        settings = self._settings
        body = {
            "model": settings.model,
            "input": texts,
            "encoding_format": settings.encoding_format,
        }
        if settings.dimensions is not None:
            body["dimensions"] = settings.dimensions
        try:
            # not embeddings.create, which takes an answer in base64 for one in numbers
            response = await client.post("/embeddings", cast_to=object, body=body)
        except ValueError as error:
            raise UnusableResponseError from error
        embedded = read_response(response, texts)
        self._check_size(embedded.vectors.shape[1])
        return embedded

    def _check_size(self, size: int) -> None:
        wanted = self._settings.dimensions
        if wanted is not None and size != wanted:
            raise HopelessError(
                f"it gives vectors of {size} numbers where dimensions asks for {wanted}: set "
                "dimensions to null, or to what the model can do"
            )
        try:
            self._cache.check_size(size)
        except ValueError as error:
            raise HopelessError(f"it {error}") from error

    def _as_sent(self, is_query: bool, text: str) -> str:
        settings = self._settings
        prompt = settings.query_prompt if is_query else settings.document_prompt
        return (prompt + text[: settings.max_characters]) or NO_TEXT
