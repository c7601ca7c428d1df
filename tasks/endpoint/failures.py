"""What to do after a request that failed: wait and ask again, drop the prompt, or give up."""

import email.utils
import random
import re
import time
from dataclasses import dataclass

import openai

FIRST_BACKOFF_S = 0.5
MAX_RETRY_AFTER_S = 600.0
"""An endpoint that asks for a longer pause is out of quota rather than busy."""

_PROMPT_REFUSED = {400, 413, 422}
_PASSING = {408, 409, 425, 429}
_SERVER_ERRORS, _NOT_IMPLEMENTED = 500, 501
_SPENT = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"}


class PromptRefusedError(Exception):
    """The endpoint does not answer this prompt: it is too long for it, or filtered."""


class UnusableResponseError(Exception):
    """The endpoint answered with something else than was asked for."""


@dataclass(frozen=True)
class Advice:
    """How to go on after a failure that may pass."""

    why: str
    """What happened, for the log: never a body, which may quote a prompt or a key."""
    wait_s: float
    """Smallest pause before the next request; 0 leaves it to the back-off."""


class HopelessError(Exception):
    """Asking again is of no use; the message says why."""


def classify(error: Exception, key_variable: str, wanted: str, request: str) -> Advice:
    """What a failed request calls for.

    Args:
        error: What it raised.
        key_variable: Environment variable with the key.
        wanted: What a response should hold, such as `chat completion`.
        request: What was sent, such as `POST /embeddings`.

    Raises:
        PromptRefusedError: This prompt will never be answered.
        HopelessError: No prompt will be answered.
    """
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error, key_variable, request)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Advice("no answer in time", 0.0)
    if isinstance(error, openai.APIConnectionError):
        return Advice(f"no connection ({type(error.__cause__ or error).__name__})", 0.0)
    return Advice(f"no {wanted} in the response", 0.0)


def backoff_s(attempt: int, longest_s: float, dice: random.Random) -> float:
    """Pause before a further attempt: doubled each time, cut, and spread over its upper half.

    The spread keeps requests that failed together from coming back together.
    """
    pause = min(longest_s, FIRST_BACKOFF_S * 2.0 ** min(attempt, 30))
    return pause * dice.uniform(0.5, 1.0)


def retry_after_s(value: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; 0 without one."""
    if value is None:
        return 0.0
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


def _classify_status(error: openai.APIStatusError, key_variable: str, request: str) -> Advice:
    status = error.status_code
    if status in _PROMPT_REFUSED:
        raise PromptRefusedError(f"HTTP {status}")
    if error.code in _SPENT or status == 402:  # noqa: PLR2004 - Payment Required
        raise HopelessError(f"the quota of the key is spent (HTTP {status})")
    if status in {401, 403}:
        raise HopelessError(
            f"it refuses the key (HTTP {status}): set {key_variable} to a valid one"
        )
    if status == _NOT_IMPLEMENTED or (status not in _PASSING and status < _SERVER_ERRORS):
        raise HopelessError(
            f"it knows no such model or address (HTTP {status}): check base_url, which mostly "
            f"ends in /v1, and model, and whether it takes {request}"
        )
    wait_s = retry_after_s(error.response.headers.get("retry-after"), time.time())
    if wait_s > MAX_RETRY_AFTER_S:
        raise HopelessError(f"it asks to wait {wait_s:.0f} s (HTTP {status}): run again later")
    return Advice(f"HTTP {status}", wait_s)
