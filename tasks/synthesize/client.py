"""Questions to an OpenAI-compatible chat endpoint: cached, bounded in time, asked again."""

import asyncio
import logging
import random
import time
from collections import Counter
from typing import Any, cast
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from tasks.contract.stage import StageError
from tasks.params.data import Endpoint
from tasks.synthesize.cache import Answer, AnswerCache, Messages, question_key
from tasks.synthesize.failures import (
    HopelessError,
    PromptRefusedError,
    UnusableResponseError,
    backoff_s,
    classify,
)

REFUSED_FROM_THE_START = 20
"""Prompts refused before any was answered, after which the request itself must be wrong."""

logger = logging.getLogger(__name__)


class ChatClient:
    """Asks questions until one fails for good; then every later question fails alike.

    So requests in flight can still bring in their answers, which are paid for, while no new ones
    are sent.
    """

    def __init__(self, endpoint: Endpoint, cache: AnswerCache, api_key: str | None) -> None:
        """Connect lazily; without a key a placeholder is sent, as local servers expect."""
        for name in ("httpx", "httpx2", "openai"):
            # They tell every request at level INFO.
            logging.getLogger(name).setLevel(logging.WARNING)
        self._endpoint = endpoint
        self._cache = cache
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=api_key or "none", max_retries=0
        )
        self._dice = random.Random()  # noqa: S311 - spreads retries in time
        self._resume_at = 0.0
        self._failed = asyncio.Event()
        self.failure: StageError | None = None
        """Why no further question is answered."""
        self.counts: Counter[str] = Counter()
        """Requests `answered`, `retried`, `refused`, and answers `from_cache`."""

    async def ask(self, messages: Messages, temperature: float) -> Answer:
        """The answer to `messages`, from the cache or from the endpoint.

        Raises:
            PromptRefusedError: The endpoint does not take this prompt.
            StageError: The endpoint is of no use, now or earlier; see `failure`.
        """
        key = question_key(self._endpoint.model, temperature, messages)
        answer = self._cache.get(key)
        if answer is not None:
            self.counts["from_cache"] += 1
            return answer
        answer = await self._insist(messages, temperature)
        self._cache.put(key, answer)
        self.counts["answered"] += 1
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _insist(self, messages: Messages, temperature: float) -> Answer:
        """Ask until there is an answer, or no hope for one."""
        attempt = 0
        while True:
            await self._wait_until(self._resume_at)
            try:
                return await self._request(messages, temperature)
            except (openai.OpenAIError, UnusableResponseError, TimeoutError) as error:
                pause_s = self._next_pause(error, attempt)
            attempt += 1
            self.counts["retried"] += 1
            await self._wait_until(time.monotonic() + pause_s)

    async def _request(self, messages: Messages, temperature: float) -> Answer:
        # The timeout of the SDK starts again with every byte that arrives.
        async with asyncio.timeout(self._endpoint.timeout_s):
            try:
                completion: object = await self._client.chat.completions.create(
                    model=self._endpoint.model,
                    messages=cast(Any, messages),
                    temperature=temperature,
                )
            except ValueError as error:
                raise UnusableResponseError from error
        return _to_answer(completion)

    def _next_pause(self, error: Exception, attempt: int) -> float:
        """Seconds to wait after `error`; remembers a failure that is final."""
        try:
            advice = classify(error)
        except PromptRefusedError:
            self._count_refusal()
            raise
        except HopelessError as hopeless:
            raise self._fail(str(hopeless)) from error
        if attempt >= self._endpoint.max_retries:
            raise self._fail(f"{advice.why}, {attempt + 1} times: is it up?") from error
        if advice.wait_s:
            # One pause for all: the limit that was hit is shared.
            self._resume_at = max(self._resume_at, time.monotonic() + advice.wait_s)
        return backoff_s(attempt, self._endpoint.max_backoff_s, self._dice)

    def _count_refusal(self) -> None:
        self.counts["refused"] += 1
        if self.counts["refused"] >= REFUSED_FROM_THE_START and not self.counts["answered"]:
            raise self._fail("it refuses every request as wrong (HTTP 400): check model")

    def _fail(self, why: str) -> StageError:
        url = urlsplit(self._endpoint.base_url)
        address = f"{url.hostname}:{url.port}" if url.port else url.hostname
        self.failure = self.failure or StageError(
            f"the endpoint {address} cannot be used: {why} Every answer so far is kept: the next "
            "run asks only for the others"
        )
        self._failed.set()
        return self.failure

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


def _to_answer(completion: object) -> Answer:
    """What of a response is kept; the SDK does not check what a server sends.

    Raises:
        UnusableResponseError: It is no chat completion.
    """
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise UnusableResponseError
    message = completion.choices[0].message
    content = getattr(message, "content", None)
    if message is None or not isinstance(content, str | None):
        raise UnusableResponseError
    prompt_tokens, completion_tokens = (
        int(getattr(completion.usage, f"{name}_tokens", None) or 0)
        for name in ("prompt", "completion")
    )
    # Half a surrogate pair cannot be stored.
    text = (content or "").encode("utf-8", "replace").decode("utf-8")
    return Answer(text, prompt_tokens, completion_tokens)
