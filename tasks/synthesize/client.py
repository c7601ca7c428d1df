"""Questions to an OpenAI-compatible chat endpoint: cached, bounded in time, asked again."""

from typing import Any, cast

import openai
from openai.types.chat import ChatCompletion

from tasks.contract.stage import StageError
from tasks.endpoint.calls import Calls
from tasks.endpoint.failures import UnusableResponseError
from tasks.params.data import API_KEY_VARIABLE, Endpoint
from tasks.synthesize.cache import Answer, AnswerCache, Messages, question_key


class ChatClient:
    """Asks questions until one fails for good; then every later question fails alike."""

    def __init__(self, endpoint: Endpoint, cache: AnswerCache, api_key: str | None) -> None:
        """Connect lazily; without a key a placeholder is sent, as local servers expect."""
        self._endpoint = endpoint
        self._cache = cache
        self._calls = Calls(
            endpoint, key_variable=API_KEY_VARIABLE, api_key=api_key, wanted="chat completion"
        )
        self.counts = self._calls.counts
        """Requests `answered`, `retried`, `refused`, and answers `from_cache`."""

    @property
    def failure(self) -> StageError | None:
        """Why no further question is answered."""
        return self._calls.failure

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

        async def request(client: openai.AsyncOpenAI) -> Answer:
            try:
                completion: object = await client.chat.completions.create(
                    model=self._endpoint.model,
                    messages=cast(Any, messages),
                    temperature=temperature,
                )
            except ValueError as error:
                raise UnusableResponseError from error
            return _to_answer(completion)

        answer = await self._calls.send(request)
        self._cache.put(key, answer)
        self.counts["answered"] += 1
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()


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
