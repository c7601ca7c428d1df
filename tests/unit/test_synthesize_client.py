"""The client of a chat endpoint: what it asks again, what it gives up, what it keeps."""

import asyncio
import json
import logging
import socket
import time
from pathlib import Path

import pytest

from tasks.contract.stage import StageError
from tasks.endpoint.calls import REFUSED_FROM_THE_START
from tasks.endpoint.failures import PromptRefusedError
from tasks.params.data import Endpoint
from tasks.synthesize.cache import Answer, open_cache
from tasks.synthesize.client import Client
from tests.unit import fake_endpoint
from tests.unit.fake_endpoint import KEY, FakeEndpoint, Reply, settings

fake, workplace = fake_endpoint.fake, fake_endpoint.workplace


def ask(endpoint: Endpoint, *prompts: str) -> list[Answer | BaseException]:
    """Ask all prompts at once through one client."""

    async def run() -> list[Answer | BaseException]:
        with open_cache(Path("answers.sqlite")) as cache:
            client = Client(endpoint, cache, KEY)
            questions = [[{"role": "user", "content": prompt}] for prompt in prompts]
            try:
                return await asyncio.gather(
                    *(client.ask(question, 0.5) for question in questions), return_exceptions=True
                )
            finally:
                await client.close()

    return asyncio.run(run())


def failure(endpoint: Endpoint, *prompts: str) -> str:
    """The message with which a question, or the first that does so of several, ends the run."""
    answers = ask(endpoint, *(prompts or ("вопрос",)))
    return str(next(answer for answer in answers if isinstance(answer, StageError)))


def test_an_answer_comes_with_its_tokens_and_the_request_with_the_key(
    workplace: Path, fake: FakeEndpoint
) -> None:
    fake.script = lambda _number, _prompt: Reply(content="ответ")
    assert ask(settings(fake.url), "вопрос") == [Answer("ответ", 10, 3)]
    (request,) = fake.requests
    assert (request["model"], request["temperature"]) == ("fake", 0.5)
    assert request["messages"] == [{"role": "user", "content": "вопрос"}]
    assert fake.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_second_question_is_answered_from_the_cache(workplace: Path, fake: FakeEndpoint) -> None:
    first = ask(settings(fake.url), "вопрос")
    assert ask(settings("http://127.0.0.1:9/v1"), "вопрос") == first
    assert len(fake.requests) == 1


@pytest.mark.parametrize("changed", [{"model": "other"}, {"model": "fakе"}])
def test_another_model_is_asked_anew(
    workplace: Path, fake: FakeEndpoint, changed: dict[str, str]
) -> None:
    ask(settings(fake.url), "вопрос")
    ask(settings(fake.url, **changed), "вопрос")
    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=500),
        Reply(status=503, raw="<html>busy</html>"),
        Reply(status=429),
        Reply(status=408),
        Reply(hangs_up=True),
        Reply(raw="<html>a proxy</html>", headers={"Content-Type": "text/html"}),
        Reply(raw="{cut off"),
        Reply(raw="[]"),
        Reply(raw='{"choices": []}'),
        Reply(raw='{"choices": null}'),
        Reply(raw='{"choices": [{}]}'),
        Reply(raw='{"choices": [{"message": {"content": ["да"]}}]}'),
        Reply(raw='{"error": "overloaded"}'),
    ],
)
def test_a_passing_failure_is_asked_again(workplace: Path, fake: FakeEndpoint, bad: Reply) -> None:
    fake.script = lambda number, _prompt: bad if number < 2 else Reply(content="да")
    assert ask(settings(fake.url), "вопрос") == [Answer("да", 10, 3)]
    assert len(fake.requests) == 3


def test_the_sdk_does_not_retry_beside_us(workplace: Path, fake: FakeEndpoint) -> None:
    fake.script = lambda _number, _prompt: Reply(status=500)
    message = failure(settings(fake.url, max_retries=1))
    assert "HTTP 500, 2 times: is it up?" in message
    assert len(fake.requests) == 2


def test_retry_after_is_honoured_by_all_requests(workplace: Path, fake: FakeEndpoint) -> None:
    """Seconds of pause are kept although the back-off would be 20 ms."""
    limited = Reply(status=429, headers={"Retry-After": "0.6"})
    fake.script = lambda number, _prompt: limited if number == 0 else Reply()
    ask(settings(fake.url), "первый")
    assert fake.moments[1] - fake.moments[0] >= 0.6


def test_a_pause_of_one_request_holds_for_the_others(workplace: Path, fake: FakeEndpoint) -> None:
    limited = Reply(status=429, headers={"Retry-After": "0.6"})
    slow_failure = Reply(status=500, delay_s=0.2)
    fake.script = lambda number, _prompt: (limited, slow_failure, Reply(), Reply())[number]
    answers = ask(settings(fake.url), "первый", "второй")
    assert all(isinstance(answer, Answer) for answer in answers)
    assert min(fake.moments[2:]) - fake.moments[0] >= 0.5


def test_an_endless_pause_ends_the_run(workplace: Path, fake: FakeEndpoint) -> None:
    fake.script = lambda _n, _p: Reply(status=429, headers={"Retry-After": "7200"})
    assert "asks to wait 7200 s (HTTP 429): run again later" in failure(settings(fake.url))
    assert len(fake.requests) == 1


@pytest.mark.parametrize("bad", [Reply(delay_s=20), Reply(trickles=True)])
def test_a_slow_answer_is_cut_off(workplace: Path, fake: FakeEndpoint, bad: Reply) -> None:
    """A trickle keeps the timeout of the SDK from ever expiring."""
    fake.script = lambda _number, _prompt: bad
    started = time.monotonic()
    message = failure(settings(fake.url, timeout_s=0.3, max_retries=1))
    assert "no answer in time, 2 times: is it up?" in message
    assert time.monotonic() - started < 5


def test_a_refused_key_ends_the_run_at_once(
    workplace: Path, fake: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tasks")
    error = {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}
    fake.script = lambda _n, _p: Reply(status=401, raw=json.dumps({"error": error}))
    message = failure(settings(fake.url))
    assert "refuses the key (HTTP 401): set SAMOVAR_LLM_API_KEY" in message
    assert KEY not in message + caplog.text
    assert len(fake.requests) == 1


def test_an_unknown_model_ends_the_run_at_once(workplace: Path, fake: FakeEndpoint) -> None:
    fake.script = lambda _number, _prompt: Reply(status=404, raw='{"error": {}}')
    assert "check base_url, which mostly ends in /v1, and model" in failure(settings(fake.url))
    assert len(fake.requests) == 1


def test_a_spent_quota_is_not_asked_again(workplace: Path, fake: FakeEndpoint) -> None:
    error = {"error": {"code": "insufficient_quota", "message": "pay"}}
    fake.script = lambda _number, _prompt: Reply(status=429, raw=json.dumps(error))
    assert "the quota of the key is spent (HTTP 429)" in failure(settings(fake.url))
    assert len(fake.requests) == 1


def test_an_endpoint_that_is_down_is_named(workplace: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    message = failure(settings(f"http://127.0.0.1:{port}/v1"))
    assert f"the endpoint 127.0.0.1:{port} cannot be used: no connection" in message
    assert "3 times: is it up?" in message
    assert KEY not in message


def test_a_refused_prompt_fails_alone(workplace: Path, fake: FakeEndpoint) -> None:
    fake.script = lambda _n, prompt: Reply(status=400 if prompt == "длинный" else 200)
    refused, answered = ask(settings(fake.url), "длинный", "короткий")
    assert isinstance(refused, PromptRefusedError)
    assert isinstance(answered, Answer)


def test_an_endpoint_that_refuses_every_prompt_is_given_up(
    workplace: Path, fake: FakeEndpoint
) -> None:
    fake.script = lambda _number, _prompt: Reply(status=400)
    prompts = [str(number) for number in range(REFUSED_FROM_THE_START)]
    assert "refuses every request as wrong" in failure(settings(fake.url), *prompts)


@pytest.mark.parametrize("usage", ["", ', "usage": {}', ', "usage": null'])
def test_an_answer_without_content_or_tokens_is_an_empty_one(
    workplace: Path, fake: FakeEndpoint, usage: str
) -> None:
    raw = f'{{"choices": [{{"message": {{"content": null}}}}]{usage}}}'
    fake.script = lambda _number, _prompt: Reply(raw=raw)
    assert ask(settings(fake.url), "вопрос") == [Answer("", 0, 0)]


def test_half_a_surrogate_pair_can_be_stored(workplace: Path, fake: FakeEndpoint) -> None:
    fake.script = lambda _number, _prompt: Reply(content="да\ud83d")
    assert ask(settings(fake.url), "вопрос") == [Answer("да?", 10, 3)]


def test_a_failure_lets_requests_in_flight_bring_in_their_answers(
    workplace: Path, fake: FakeEndpoint
) -> None:
    """They are paid for: the next run must find them."""
    fake.script = lambda _n, p: Reply(status=401) if p == "плохой" else Reply(delay_s=0.3)
    bad, good = ask(settings(fake.url), "плохой", "хороший")
    assert isinstance(bad, StageError)
    assert isinstance(good, Answer)
    assert ask(settings("http://127.0.0.1:9/v1"), "хороший") == [good]


def test_a_failure_ends_the_waiting_of_others(workplace: Path, fake: FakeEndpoint) -> None:
    limited = Reply(status=429, headers={"Retry-After": "300"})
    fake.script = lambda _n, p: limited if p == "ждёт" else Reply(status=401, delay_s=0.3)
    started = time.monotonic()
    waiting, _ = ask(settings(fake.url), "ждёт", "плохой")
    assert isinstance(waiting, StageError)
    assert time.monotonic() - started < 10
