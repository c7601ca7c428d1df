"""The stage teach with a teacher behind an endpoint: what is believed, kept, and asked once."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from model.training.data.recorded_vectors import RecordedVectors
from tasks.contract.stage import StageError
from tasks.endpoint.calls import REFUSED_FROM_THE_START
from tasks.params.load import Params, load_params
from tasks.teach.__main__ import teach
from tasks.teach.asking import CACHE
from tests.unit.fake_embeddings import (
    TOKENS_EACH,
    VARIABLE,
    FakeEmbeddings,
    teacher_at,
    vector_of,
)
from tests.unit.fake_endpoint import DEADLINE_S, KEY, Reply
from tests.unit.file_limit import files_up_to
from tests.unit.test_teach import (
    DOCUMENT,
    DOCUMENTS,
    PROFILE,
    QUERY,
    ROWS,
    contents,
    example,
    with_teach,
    write_corpus,
)

ROOT = Path(__file__).parents[2]
VECTORS = Path("artifacts/teach/vectors/fake")
QUERIES = ["что глубже?", "где самовар?", "похоже", "подобно"]
SHOWN = [*DOCUMENTS, ROWS[0]["positives"][0], "Кошка спит на тёплой печи."]
EVERY = sorted([QUERY + text for text in QUERIES] + [DOCUMENT + text for text in SHOWN])
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def fake() -> Iterator[FakeEmbeddings]:
    endpoint = FakeEmbeddings()
    yield endpoint
    endpoint.close()


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a small corpus, and a key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, KEY)
    write_corpus(ROWS, DOCUMENTS)


def params_for(url: str, **changed: Any) -> Params:
    return with_teach(load_params(PROFILE), teachers={"fake": teacher_at(url, **changed)})


def failure(url: str, **changed: Any) -> str:
    with pytest.raises(StageError) as caught:
        teach(params_for(url, **changed))
    assert not Path("artifacts/teach").exists()
    assert not list(Path("artifacts").glob(".teach*"))
    return str(caught.value)


def metrics() -> dict[str, Any]:
    return json.loads(Path("artifacts/teach/metrics.json").read_text())["teachers"]["fake"]


def expect_vectors(encode: Callable[[str], np.ndarray] = vector_of) -> None:
    for is_query, prompt, texts in ((True, QUERY, QUERIES), (False, DOCUMENT, SHOWN)):
        exact = np.stack([encode(prompt + text).astype(np.float64) for text in texts])
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        got = RecordedVectors(VECTORS).find([(is_query, text) for text in texts])
        np.testing.assert_allclose(got, exact, atol=1e-3)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_those_of_the_model_behind_the_endpoint(
    fake: FakeEmbeddings, pico_folder: Path, encoding: str
) -> None:
    """What sentence-transformers answers by itself, whatever the order of the answers."""
    model = SentenceTransformer(str(pico_folder), device="cpu")
    fake.encode = lambda texts: 7.0 * np.asarray(model.encode(texts))
    teach(params_for(fake.url, encoding_format=encoding))
    expect_vectors(lambda text: np.asarray(model.encode(text)))
    assert sorted(fake.texts()) == EVERY
    request, headers = fake.requests[0], fake.headers[0]
    assert set(request) == {"model", "input", "encoding_format"}
    assert (request["model"], request["encoding_format"]) == ("fake", encoding)
    assert headers["authorization"] == f"Bearer {KEY}"


def test_tokens_are_told_and_so_is_the_agreement(fake: FakeEmbeddings) -> None:
    teach(params_for(fake.url))
    told = metrics()
    assert (told["texts"], told["embedding_size"]) == (len(EVERY), 16)
    assert told["tokens"] == TOKENS_EACH * len(EVERY)
    assert set(told["positive_is_nearer"]) == {"questions"}


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None}, "free", {"prompt_tokens": -1}]
)
def test_an_endpoint_need_not_say_what_texts_cost(fake: FakeEmbeddings, usage: object) -> None:
    fake.spoil = lambda answer: answer.update(usage=usage)
    teach(params_for(fake.url))
    assert metrics()["tokens"] == 0


def test_dimensions_are_asked_for_and_expected(fake: FakeEmbeddings) -> None:
    teach(params_for(fake.url, dimensions=4))
    assert {request["dimensions"] for request in fake.requests} == {4}
    expect_vectors(lambda text: vector_of(text)[:4])
    fake.spoil = lambda answer: [entry.update(embedding=[1.0] * 5) for entry in answer["data"]]
    message = failure_after(lambda: teach(params_for(fake.url, dimensions=3)))
    assert "vectors of 5 numbers where dimensions asks for 3: set dimensions to null" in message


def failure_after(run: Callable[[], object]) -> str:
    with pytest.raises(StageError) as caught:
        run()
    return str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=429, headers={"Retry-After": "0.01"}),
        Reply(status=500),
        Reply(status=503, raw="<html>busy</html>"),
        Reply(hangs_up=True),
        Reply(raw="<html>a proxy</html>", headers={"Content-Type": "text/html"}),
        Reply(raw="{cut off"),
        Reply(raw='{"error": "overloaded"}'),
        Reply(raw='{"data": null}'),
        Reply(raw='{"data": [1, 2]}'),
    ],
)
def test_a_passing_failure_is_asked_again(fake: FakeEmbeddings, bad: Reply) -> None:
    fake.script = lambda number, _request: bad if number < 2 else Reply()
    teach(params_for(fake.url, concurrency=1))
    expect_vectors()
    assert len(fake.requests) == 5 + 2


def test_a_slow_answer_is_cut_off(fake: FakeEmbeddings) -> None:
    fake.script = lambda _number, _request: Reply(trickles=True)
    started = time.monotonic()
    message = failure(fake.url, timeout_s=0.3, max_retries=1)
    assert "no answer in time, 2 times: is it up?" in message
    assert time.monotonic() - started < 10


def test_what_was_answered_is_not_asked_again_wherever_the_endpoint_is(
    fake: FakeEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a key needed then, and how it was asked may change."""
    teach(params_for(fake.url))
    before = contents(Path("artifacts/teach"))
    monkeypatch.delenv(VARIABLE)
    moved = {"batch_texts": 5, "concurrency": 1, "encoding_format": "base64"}
    teach(params_for(NOWHERE, **moved))
    assert contents(Path("artifacts/teach")) == before
    monkeypatch.setenv(VARIABLE, KEY)
    write_corpus([*ROWS, example("новое?", "Да.")], DOCUMENTS)
    del fake.requests[:]
    teach(params_for(fake.url))
    assert sorted(fake.texts()) == [DOCUMENT + "Да.", QUERY + "новое?"]
    assert metrics()["tokens"] == TOKENS_EACH * (len(EVERY) + 2)


@pytest.mark.parametrize(
    "changed", [{"model": "other"}, {"query_prompt": ""}, {"dimensions": 8}, {"max_characters": 3}]
)
def test_what_decides_an_answer_is_asked_anew(
    fake: FakeEmbeddings, changed: dict[str, Any]
) -> None:
    teach(params_for(fake.url))
    del fake.requests[:]
    teach(params_for(fake.url, **changed))
    assert len(fake.texts()) == metrics()["texts"]


def test_requests_at_once_are_bounded_and_change_no_byte(fake: FakeEmbeddings) -> None:
    fake.script = lambda number, _request: Reply(delay_s=0.05 / (1 + number % 3))
    teach(params_for(fake.url, concurrency=3, batch_texts=1))
    assert fake.most_in_flight == 3
    expected = contents(Path("artifacts/teach"))
    for file in CACHE.rglob("*.bin"):
        file.unlink()
    teach(params_for(fake.url, concurrency=1, batch_texts=3))
    assert contents(Path("artifacts/teach")) == expected


def test_a_text_of_two_tables_is_asked_about_once(fake: FakeEmbeddings) -> None:
    """Also while the answer about the first is on its way."""
    write_corpus([*ROWS, example("ещё?", DOCUMENTS[0])], DOCUMENTS)
    fake.script = lambda _number, _request: Reply(delay_s=0.1)
    teach(params_for(fake.url, concurrency=8, batch_texts=1))
    assert sorted(fake.texts()) == sorted([*EVERY, QUERY + "ещё?"])


def test_texts_are_cut_where_asked_and_none_is_empty(fake: FakeEmbeddings) -> None:
    """OpenAI's own endpoint refuses an empty text."""
    write_corpus([example("длинный вопрос", "", source="questions")], [])
    prompts = {"query_prompt": "", "document_prompt": ""}
    values = teacher_at(fake.url, max_characters=7, **prompts)
    teach(with_teach(load_params(PROFILE), teachers={"fake": values}, sources=["questions"]))
    assert sorted(fake.texts()) == [" ", "длинный"]
    RecordedVectors(VECTORS).find([(True, "длинный вопрос"), (False, "")])


def bad_vector(embedding: object) -> Callable[[dict[str, Any]], object]:
    return lambda answer: answer["data"][-1].update(embedding=embedding)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda answer: answer["data"].pop(), "gives 1 vectors for 2 texts"),
        (lambda answer: answer["data"].append(answer["data"][0]), "gives 3 vectors for 2 texts"),
        (lambda answer: answer["data"][0].update(index=0), "the indices of its vectors are not"),
        (lambda answer: answer["data"][0].update(index=None), "the indices of its vectors are not"),
        (lambda answer: answer["data"][0].update(index=[1]), "the indices of its vectors are not"),
        (bad_vector(None), "something else than a vector for the text 'query: "),
        (bad_vector([]), "something else than a vector"),
        (bad_vector("не base64"), "something else than a vector"),
        (bad_vector("AAAA"), "something else than a vector"),
        (bad_vector({"a": 1}), "something else than a vector"),
        (bad_vector([["a"]]), "something else than a vector"),
        (bad_vector([[1.0] * 16] * 3), "one of embeddings, with a pooling"),
        (bad_vector([float("nan")] * 16), "not finite for 1 of 2 texts, such as 'query: "),
        (bad_vector([1.0, None] * 8), "numbers that are not finite"),
        (bad_vector([1e39] * 16), "numbers that are not finite"),
        (bad_vector([0.0] * 16), "nothing but zeros for 1 of 2 texts, such as 'query: "),
        (bad_vector([1.0] * 15), "vectors of 15 and of 16 numbers at once"),
    ],
)
def test_answers_that_cannot_be_believed_end_the_run_and_the_next_goes_on(
    fake: FakeEmbeddings, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    """The second answer is spoilt; it is not asked for again by the same run, which would pay."""
    fake.spoil = lambda answer: spoil(answer) if len(fake.requests) == 2 else None
    told = failure(fake.url, concurrency=1)
    assert message in told
    assert "teach.teachers.fake: the endpoint 127.0.0.1:" in told
    assert "Every answer so far is kept: the next run asks only for the others" in told
    assert len(fake.requests) == 2
    teach(params_for(fake.url, concurrency=1))
    expect_vectors()
    assert len(fake.texts()) == len(EVERY) + 2


def test_another_model_under_the_same_name_is_refused(fake: FakeEmbeddings) -> None:
    """In the middle of a run, and when a later one asks about new texts."""
    long: Callable[[list[str]], np.ndarray] = lambda texts: np.ones((len(texts), 20))  # noqa: E731
    short = fake.encode
    fake.encode = lambda texts: (long if len(fake.requests) > 1 else short)(texts)
    told = failure(fake.url, concurrency=1)
    assert "gives vectors of 20 numbers, and gave 16 before: it is another model" in told
    (folder,) = CACHE.iterdir()
    assert f"remove {folder} to have every text asked about again" in told
    assert "and gave 16 before" in failure(fake.url, concurrency=1)
    fake.encode = short
    teach(params_for(fake.url))
    expect_vectors()


def test_an_endpoint_that_goes_down_is_named_and_the_next_run_goes_on(
    fake: FakeEmbeddings,
) -> None:
    fake.script = lambda number, _request: Reply(hangs_up=number >= 2)
    told = failure(fake.url, concurrency=1, max_retries=1)
    assert "no connection" in told
    assert "2 times: is it up? Every answer so far is kept" in told
    answered = [text for request in fake.answered for text in request["input"]]
    assert len(answered) == 4
    del fake.requests[:]
    fake.script = lambda _number, _request: Reply()
    teach(params_for(fake.url))
    assert sorted(fake.texts() + answered) == EVERY
    expect_vectors()


def test_requests_in_flight_bring_in_their_answers_when_another_fails(
    fake: FakeEmbeddings,
) -> None:
    fake.script = lambda number, _request: Reply(status=401) if number == 1 else Reply(delay_s=0.3)
    assert f"refuses the key (HTTP 401): set {VARIABLE}" in failure(fake.url, concurrency=2)
    assert len(fake.answered) == 2
    kept = fake.answered[-1]["input"]
    del fake.requests[:]
    fake.script = lambda _number, _request: Reply()
    teach(params_for(fake.url))
    assert not set(kept) & set(fake.texts())


def test_a_text_that_is_refused_is_named_and_its_neighbours_are_kept(
    fake: FakeEmbeddings,
) -> None:
    def refuses(_number: int, request: dict[str, Any]) -> Reply:
        return Reply(status=400 if any("Байкал" in text for text in request["input"]) else 200)

    fake.script = refuses
    told = failure(fake.url, batch_texts=4, concurrency=1)
    assert "refuses the text 'Байкал — самое глубокое озеро на Земле.', of 48 characters" in told
    assert "(HTTP 400)" in told
    assert "set a lower max_characters" in told
    del fake.requests[:]
    fake.script = lambda _number, _request: Reply()
    teach(params_for(fake.url))
    assert any("Байкал" in text for text in fake.texts())
    assert len(fake.texts()) < 4


def test_a_batch_that_is_too_large_is_halved(fake: FakeEmbeddings) -> None:
    fake.script = lambda _number, request: Reply(status=413 if len(request["input"]) > 1 else 200)
    teach(params_for(fake.url, batch_texts=8))
    expect_vectors()


def test_an_endpoint_that_refuses_everything_is_given_up(fake: FakeEmbeddings) -> None:
    rows = [example(f"вопрос {number}", f"ответ {number}") for number in range(40)]
    write_corpus(rows, [])
    fake.script = lambda _number, _request: Reply(status=422)
    values = teacher_at(fake.url, batch_texts=1, concurrency=20)
    params = with_teach(load_params(PROFILE), teachers={"fake": values}, sources=["questions"])
    told = failure_after(lambda: teach(params))
    assert "refuses" in told
    assert len(fake.requests) <= 2 * REFUSED_FROM_THE_START


def test_the_key_is_in_no_output_log_or_error(
    fake: FakeEmbeddings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tasks")
    error = {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}
    fake.script = lambda number, _request: (
        Reply(status=(401, 400, 500)[number % 3], raw=json.dumps({"error": error}))
        if number % 2
        else Reply()
    )
    told = failure(fake.url, concurrency=1)
    fake.script = lambda _number, _request: Reply()
    teach(params_for(fake.url))
    assert KEY not in told + caplog.text
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_a_key_that_is_not_there_is_said_before_anything_is_asked(
    fake: FakeEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    assert f"key_variable names {VARIABLE}, which the environment does not hold" in failure(
        fake.url
    )
    assert not fake.requests
    teach(params_for(fake.url, key_variable=None))
    assert fake.headers[0]["authorization"] == "Bearer none"


def test_when_the_disk_has_room_again_only_what_did_not_fit_is_asked_again(
    fake: FakeEmbeddings,
) -> None:
    params = params_for(fake.url, concurrency=1, batch_texts=1)
    three = 3 * (16 + 2 * 16)
    with (
        files_up_to(three + 5),
        pytest.raises(OSError, match=r"vectors-16\.bin .*disk"),
    ):
        teach(params)
    assert not Path("artifacts/teach").exists()
    (file,) = CACHE.rglob("*.bin")
    assert file.stat().st_size == three, "no piece of a vector is left"
    assert len(fake.requests) == 4
    teach(params)
    assert len(fake.requests) == len(EVERY) + 1
    expect_vectors()


@pytest.mark.slow
def test_a_killed_run_pays_for_nothing_twice(fake: FakeEmbeddings) -> None:
    """SIGKILL while the fourth request is open: three answers must be on disk."""
    write_corpus(ROWS[:2], DOCUMENTS)
    values = teacher_at(fake.url, concurrency=1, batch_texts=1)
    params = with_teach(load_params(PROFILE), teachers={"fake": values}, sources=["questions"])
    teach(params)
    expected = contents(Path("artifacts/teach"))
    for file in [*CACHE.rglob("*.bin"), *Path("artifacts/teach").rglob("*.*")]:
        file.unlink()
    del fake.requests[:], fake.answered[:]
    values = yaml.safe_load(PROFILE.read_text()) | {"teach": params.teach.model_dump()}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("outside.json").write_text("{}")
    fake.script = lambda number, _request: Reply(delay_s=60 if number == 3 else 0)
    command = [sys.executable, "-m", "tasks.teach"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            fake.wait_for_requests(4, 120.0)  # torch is slow to load on a busy machine
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    paid = [text for request in fake.answered for text in request["input"]]
    assert len(paid) == 3
    del fake.requests[:]
    fake.script = lambda _number, _request: Reply()
    teach(params)
    assert not set(paid) & set(fake.texts())
    assert contents(Path("artifacts/teach")) == expected
