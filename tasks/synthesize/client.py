"""Questions to an OpenAI-compatible endpoint: cached, bounded in time, asked again."""

from typing import Any, cast

import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tasks.contract.stage import StageError
from tasks.endpoint.calls import Calls
from tasks.endpoint.failures import UnusableResponseError
from tasks.params.data import API_KEY_VARIABLE, Endpoint
from tasks.synthesize.cache import (
    LINE_END,
    Answer,
    AnswerCache,
    Messages,
    Prompt,
    question_key,
)

_WANTED = {"chat": "chat completion", "completion": "completion"}
"""What a response should hold, by the kind of interface."""
_REQUESTS = {
    "chat": "POST /chat/completions: one without chat wants interface: {kind: completion, ...}",
    "completion": "POST /completions: one with chat alone wants interface: {kind: chat, ...}",
}
"""What is sent, and what to do where it is not known."""


class Client:
    """Asks questions until one fails for good; then every later question fails alike."""

    def __init__(self, endpoint: Endpoint, cache: AnswerCache, api_key: str | None) -> None:
        """Connect lazily; without a key a placeholder is sent, as local servers expect."""
        self._endpoint = endpoint
        self._cache = cache
        kind = endpoint.interface.kind
        self._calls = Calls(
            endpoint,
            key_variable=API_KEY_VARIABLE,
            api_key=api_key,
            wanted=_WANTED[kind],
            request=_REQUESTS[kind],
        )
        self.counts = self._calls.counts
        """Requests `answered`, `retried`, `refused`, answers `from_cache`, tokens of the others."""

    @property
    def failure(self) -> StageError | None:
        """Why no further question is answered."""
        return self._calls.failure

    async def ask(self, question: Messages | Prompt, temperature: float) -> Answer:
        """The answer to messages, or how a prompt goes on, from the cache or from the endpoint.

        Raises:
            PromptRefusedError: The endpoint does not take this prompt.
            StageError: The endpoint is of no use, now or earlier; see `failure`.
        """
        key = question_key(self._endpoint.model, temperature, question)
        answer = self._cache.get(key)
        if answer is not None:
            self.counts["from_cache"] += 1
            return answer

        async def request(client: openai.AsyncOpenAI) -> Answer:
            try:
                if isinstance(question, Prompt):
                    return _to_line(await self._complete(client, question, temperature))
                return _to_answer(await self._reply(client, question, temperature))
            except ValueError as error:
                raise UnusableResponseError from error

        answer = await self._calls.send(request)
        self._cache.put(key, answer)
        self.counts["answered"] += 1
        self.counts["prompt_tokens"] += answer.prompt_tokens
        self.counts["completion_tokens"] += answer.completion_tokens
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()

    async def _reply(
        self, client: openai.AsyncOpenAI, messages: Messages, temperature: float
    ) -> object:
        return await client.chat.completions.create(
            model=self._endpoint.model, messages=cast(Any, messages), temperature=temperature
        )

    async def _complete(
        self, client: openai.AsyncOpenAI, prompt: Prompt, temperature: float
    ) -> object:
        return await client.completions.create(
            model=self._endpoint.model,
            prompt=prompt.text,
            max_tokens=prompt.max_tokens,
            temperature=temperature,
            stop=[LINE_END],
            seed=prompt.seed,
        )


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
    return _stored(content or "", completion.usage)


def _to_line(completion: object) -> Answer:
    """The line that a model wrote, with its end unless the server cut it off before.

    Some servers do not heed `stop`, so what follows the line is cut here.

    Raises:
        UnusableResponseError: It is no completion.
    """
    if not isinstance(completion, Completion) or not completion.choices:
        raise UnusableResponseError
    choice = completion.choices[0]
    text = getattr(choice, "text", None)
    if not isinstance(text, str):
        raise UnusableResponseError
    line, end, _ = text.partition(LINE_END)
    is_whole = bool(end) or getattr(choice, "finish_reason", None) != "length"
    return _stored(line + LINE_END * is_whole, completion.usage)


def _stored(text: str, usage: object) -> Answer:
    prompt_tokens, completion_tokens = (
        int(getattr(usage, f"{name}_tokens", None) or 0) for name in ("prompt", "completion")
    )
    # Half a surrogate pair cannot be stored.
    return Answer(text.encode("utf-8", "replace").decode("utf-8"), prompt_tokens, completion_tokens)
