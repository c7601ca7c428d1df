"""Requests to a server with OpenAI's interface: bounded in time, asked again, given up together."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

import openai

from tasks.contract.stage import StageError
from tasks.endpoint.failures import (
    HopelessError,
    PromptRefusedError,
    UnusableResponseError,
    backoff_s,
    classify,
)
from tasks.params.server import Server

REFUSED_FROM_THE_START = 20
"""Prompts refused before any was answered, after which the request itself must be wrong."""

Answer = TypeVar("Answer")


class Calls:
    """Sends requests until one fails for good; then every later one fails alike.

    So requests in flight can still bring in their answers, which are paid for, while no new ones
    are sent.
    """

    def __init__(
        self,
        server: Server,
        *,
        key_variable: str,
        api_key: str | None,
        wanted: str,
        request: str,
    ) -> None:
        """Connect lazily.

        Args:
            server: Where to, and how long and how often.
            key_variable: Environment variable with the key, for messages.
            api_key: Without one a placeholder is sent, as local servers expect.
            wanted: What a response should hold, for messages.
            request: What is sent, such as `POST /embeddings`, for messages.
        """
        for name in ("httpx", "httpx2", "openai"):
            # They tell every request at level INFO.
            logging.getLogger(name).setLevel(logging.WARNING)
        self._server = server
        self._key_variable = key_variable
        self._wanted = wanted
        self._request = request
        self._client = openai.AsyncOpenAI(
            base_url=server.base_url, api_key=api_key or "none", max_retries=0
        )
        self._dice = random.Random()  # noqa: S311 - spreads retries in time
        self._resume_at = 0.0
        self._failed = asyncio.Event()
        self.failure: StageError | None = None
        """Why no further request is answered."""
        self.counts: Counter[str] = Counter()
        """Requests `retried` and `refused`; who sends them counts what is `answered`."""

    async def send(self, request: Callable[[openai.AsyncOpenAI], Awaitable[Answer]]) -> Answer:
        """Send a request until there is an answer, or no hope for one.

        Raises:
            PromptRefusedError: The endpoint does not take this prompt.
            StageError: The endpoint is of no use, now or earlier; see `failure`.
        """
        attempt = 0
        while True:
            await self._wait_until(self._resume_at)
            try:
                # The timeout of the SDK starts again with every byte that arrives.
                async with asyncio.timeout(self._server.timeout_s):
                    return await request(self._client)
            except HopelessError as hopeless:
                raise self.give_up(str(hopeless)) from hopeless
            except (openai.OpenAIError, UnusableResponseError, TimeoutError) as error:
                pause_s = self._next_pause(error, attempt)
            attempt += 1
            self.counts["retried"] += 1
            await self._wait_until(time.monotonic() + pause_s)

    def give_up(self, why: str) -> StageError:
        """The error with which this and every later request fails: the first that was told."""
        url = urlsplit(self._server.base_url)
        address = f"{url.hostname}:{url.port}" if url.port else url.hostname
        end = "" if why.endswith("?") else "."
        self.failure = self.failure or StageError(
            f"the endpoint {address} cannot be used: {why}{end} Every answer so far is kept: the "
            "next run asks only for the others"
        )
        self._failed.set()
        return self.failure

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _next_pause(self, error: Exception, attempt: int) -> float:
        """Seconds to wait after `error`; remembers a failure that is final."""
        try:
            advice = classify(error, self._key_variable, self._wanted, self._request)
        except PromptRefusedError:
            self._count_refusal()
            raise
        except HopelessError as hopeless:
            raise self.give_up(str(hopeless)) from error
        if attempt >= self._server.max_retries:
            raise self.give_up(f"{advice.why}, {attempt + 1} times: is it up?") from error
        if advice.wait_s:
            # One pause for all: the limit that was hit is shared.
            self._resume_at = max(self._resume_at, time.monotonic() + advice.wait_s)
        return backoff_s(attempt, self._server.max_backoff_s, self._dice)

    def _count_refusal(self) -> None:
        self.counts["refused"] += 1
        if self.counts["refused"] >= REFUSED_FROM_THE_START and not self.counts["answered"]:
            raise self.give_up(
                "it refuses every request as wrong (HTTP 400): check model, and whether it takes "
                f"{self._request}"
            )

    async def _wait_until(self, moment: float) -> None:
        """Sleep, but no longer than until the failure of another request.

        Raises:
            StageError: There is such a failure.
        """
        pause_s = moment - time.monotonic()
        if pause_s > 0:
            try:
                await asyncio.wait_for(self._failed.wait(), pause_s)
            except TimeoutError:
                return
        if self.failure is not None:
            raise self.failure
