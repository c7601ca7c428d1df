"""Queries by plain completion: what is asked, what of the answers is used, what survives."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.contract.records import read_table
from tasks.contract.stage import StageError
from tasks.params.load import Params, load_params
from tasks.synthesize.__main__ import synthesize
from tasks.synthesize.drafts import Document
from tasks.synthesize.examples import LABELS, STYLES, read_examples, shown_passage
from tasks.synthesize.written import written_query
from tests.unit import fake_endpoint
from tests.unit.fake_endpoint import DEADLINE_S, FakeEndpoint, Reply, settings
from tests.unit.test_synthesize_endpoint import ingest

ROOT = Path(__file__).parents[2]
FEW_SHOT = ROOT / "tasks/synthesize/few_shot"
INTERFACE = {
    "kind": "completion", "examples": {"documents": "encyclopaedia"},
    "styles": ["keywords", "question", "headline"], "passage_characters": 300, "max_tokens": 40,
}  # fmt: skip


fake, workplace = fake_endpoint.fake, fake_endpoint.workplace


def params_for(url: str, *, queries: int = 1, seed: int = 1, **changed: Any) -> Params:
    """The smallest profile; `changed` are keys of the endpoint or of its interface."""
    own = {key: changed.pop(key) for key in list(changed) if key in INTERFACE}
    endpoint = settings(url, interface=INTERFACE | own, **changed)
    loaded = load_params(ROOT / "infra/profiles/pico.yaml")
    values = {
        "endpoint": endpoint, "max_documents": 100, "queries_per_document": queries, "seed": seed,
    }  # fmt: skip
    return loaded.model_copy(update={"synthesize": loaded.synthesize.model_copy(update=values)})


def metrics() -> dict[str, Any]:
    return json.loads(Path("artifacts/synthesize/metrics.json").read_text())


def examples() -> list[dict[str, Any]]:
    return read_table(Path("artifacts/synthesize/examples")).to_pylist()


def number_of(prompt: str) -> int:
    return int(re.findall(r"номер (\d+)", prompt)[-1])


def test_a_model_is_given_examples_and_goes_on(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(1)
    synthesize(params_for(fake.url, styles=["question"]))
    (request,) = fake.requests
    assert isinstance(request.pop("seed"), int)
    prompt = request.pop("prompt")
    assert request == {"model": "fake", "max_tokens": 40, "temperature": 0.7, "stop": ["\n"]}
    assert prompt.startswith("Статьи энциклопедии и то, чем их находят.\n\nОтрывок: Байкал ")
    assert prompt.count("\nВопрос: ") == 7
    assert "Заголовок" not in prompt
    assert prompt.endswith(
        "\n\nОтрывок: Озеро 0 Озеро номер 0 лежит среди гор. Зимой оно замерзает.\nВопрос:"
    )
    (row,) = examples()
    assert row["query"].startswith("зимний поход ")
    assert row["positives"] == ["Озеро 0\nОзеро номер 0 лежит среди гор. Зимой оно замерзает."]
    assert metrics() == {
        "generator": "fake", "documents": 1, "skipped_documents": {}, "examples": 1,
        "kinds": {"question": 1}, "rejected": {}, "answers": 1, "prompt_tokens": 10,
        "completion_tokens": 3,
    }  # fmt: skip


def test_styles_take_turns_and_no_two_requests_are_equal(
    workplace: Path, fake: FakeEndpoint
) -> None:
    """A fourth query is of the first style again, and has another seed."""
    ingest(4)
    synthesize(params_for(fake.url, queries=4))
    kinds = metrics()["kinds"]
    assert sum(kinds.values()) + sum(metrics()["rejected"].values()) == 16
    assert set(kinds) == set(STYLES)
    asked = {(request["prompt"], request["seed"]) for request in fake.requests}
    assert len(asked) == 16
    assert len({prompt for prompt, _ in asked}) == 12


def test_prompts_that_begin_alike_follow_each_other(workplace: Path, fake: FakeEndpoint) -> None:
    """A server keeps what it has computed of the prompt before."""
    ingest(9)
    synthesize(params_for(fake.url, queries=3, concurrency=1))
    labels = [request["prompt"].rpartition("\n")[2] for request in fake.requests]
    changes = sum(one != other for one, other in pairwise(labels))
    assert changes == 2


def test_answers_in_any_order_give_equal_bytes(workplace: Path, fake: FakeEndpoint) -> None:
    """The first question is answered after ten others."""
    written = []
    for concurrency in (1, 6):
        folder = workplace / str(concurrency)
        folder.mkdir()
        first, answered = len(fake.requests), len(fake.answered)

        def late(number: int, _prompt: str, first: int = first, wanted: int = answered) -> Reply:
            while number == first > 0 and len(fake.answered) < wanted + 10:
                time.sleep(0.01)
            return Reply()

        fake.script = late
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            ingest(12)
            synthesize(params_for(fake.url, queries=2, concurrency=concurrency))
            files = sorted(Path("artifacts/synthesize").rglob("*.*"))
            written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]
    assert len(fake.answered) == 48
    assert fake.answered.index(fake.prompt(24), 24) == 34


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(content=" озеро Ильмень зимой\n\nОтрывок: Волга впадает"), None),
        (Reply(content=" озеро Ильмень зимой\r\nВопрос: где?"), None),
        (Reply(content=" озеро Ильмень зимой\nи дальше", finish_reason="length"), None),
        (Reply(content=" озеро Ильмень зимой", finish_reason="eos_token"), None),
        (Reply(content=" озеро Ильмень зимой", finish_reason="length"), "query_cut_off"),
        (Reply(content="\n озеро зимой"), "query_empty"),
        (Reply(content=""), "query_empty"),
        (Reply(content=" …"), "query_empty"),
        (Reply(content="да\ud83d нет снега"), None),
        (Reply(status=400), "refused_by_endpoint"),
    ],
)
def test_a_line_is_used_whatever_the_server_does_with_stop(
    workplace: Path, fake: FakeEndpoint, reply: Reply, reason: str | None
) -> None:
    ingest(3)
    fake.script = lambda _number, prompt: reply if number_of(prompt) == 1 else Reply()
    synthesize(params_for(fake.url, styles=["keywords"]))
    queries = {row["query"] for row in examples() if "номер 1 " in row["positives"][0]}
    assert metrics()["rejected"] == ({} if reason is None else {reason: 1})
    assert queries <= {"озеро Ильмень зимой", "да? нет снега"}
    assert bool(queries) == (reason is None)


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(hangs_up=True),
        Reply(raw="{cut off"),
        Reply(raw='{"choices": []}'),
        Reply(raw='{"choices": [{}]}'),
        Reply(raw='{"choices": [{"text": ["да"]}]}'),
        Reply(raw='{"choices": [{"message": {"content": "да"}}]}'),
    ],
)
def test_a_passing_failure_is_asked_again(workplace: Path, fake: FakeEndpoint, bad: Reply) -> None:
    ingest(2)
    fake.script = lambda number, _prompt: bad if number < 2 else Reply()
    synthesize(params_for(fake.url, concurrency=1))
    assert len(examples()) == 2
    assert len(fake.requests) == 4


def test_a_server_that_goes_down_costs_no_answer_twice(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(8)
    fake.script = lambda number, _prompt: Reply(hangs_up=number >= 10)
    params = params_for(fake.url, queries=3, concurrency=2)
    with pytest.raises(StageError, match=r"no connection .*Every answer so far is kept"):
        synthesize(params)
    assert not Path("artifacts/synthesize").exists()
    paid = set(fake.answered)
    assert len(paid) == 10
    first = len(fake.requests)
    fake.script = lambda _number, _prompt: Reply()
    synthesize(params)
    again = {fake.prompt(number) for number in range(first, len(fake.requests))}
    assert len(fake.requests) - first == 14
    assert not again & paid
    synthesize(params)
    assert len(fake.requests) - first == 14, "a third run asks nothing"


@pytest.mark.slow
def test_a_killed_run_pays_for_nothing_twice(workplace: Path, fake: FakeEndpoint) -> None:
    """SIGKILL while the sixth request is open: five answers must be on disk."""
    ingest(9)
    fake.script = lambda number, _prompt: Reply(delay_s=200 if number == 5 else 0)
    values = yaml.safe_load((ROOT / "infra/profiles/pico.yaml").read_text())
    own = params_for(fake.url, concurrency=1, timeout_s=250).synthesize
    values["synthesize"] = own.model_dump()
    sources = load_params(ROOT / "infra/profiles/pico.yaml").ingest.sources.items()
    known = [name for name, each in sources if each.task == "documents" or each.also_documents]
    values["synthesize"]["endpoint"]["interface"]["examples"] = dict.fromkeys(
        known, "encyclopaedia"
    )
    assert "documents" in known
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("outside.json").write_text("{}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks.synthesize"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        fake.wait_for_requests(6, 100)
        process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    paid = set(fake.answered)
    assert len(paid) == 5
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert result.returncode == 0, result.stderr
    timing = json.loads(Path("artifacts/timings/synthesize.json").read_text())
    assert (timing["answered"], timing["from_cache"], timing["completion_tokens"]) == (4, 5, 12)
    assert metrics()["completion_tokens"] == 27
    again = [fake.prompt(number) for number in range(6, len(fake.requests))]
    assert len(again) == 4
    assert not paid & set(again)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_endpoint_with_chat_alone_is_named(
    workplace: Path, fake: FakeEndpoint, status: int
) -> None:
    ingest(1)
    fake.script = lambda _number, _prompt: Reply(status=status, raw='{"error": {}}')
    message = rf"HTTP {status}.*POST /completions: one with chat alone wants interface: .kind: chat"
    with pytest.raises(StageError, match=message):
        synthesize(params_for(fake.url))
    assert len(fake.requests) == 1


def test_an_endpoint_that_refuses_completions_is_named(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(30)
    fake.script = lambda _number, _prompt: Reply(status=400)
    with pytest.raises(StageError, match=r"HTTP 400.*POST /completions: one with chat alone"):
        synthesize(params_for(fake.url))


def test_an_endpoint_with_completions_alone_is_named(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(1)
    fake.script = lambda _number, _prompt: Reply(status=404)
    chat = params_for(fake.url).synthesize.model_copy(update={"endpoint": settings(fake.url)})
    params = params_for(fake.url).model_copy(update={"synthesize": chat})
    message = "POST /chat/completions: one without chat wants interface: .kind: completion"
    with pytest.raises(StageError, match=message):
        synthesize(params)


def test_another_prompt_or_seed_is_asked_anew(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(1)
    for number, changed in enumerate(
        [{}, {"seed": 2}, {"max_tokens": 30}, {"passage_characters": 40}, {"temperature": 0.1}], 1
    ):
        synthesize(params_for(fake.url, styles=["keywords"], **changed))
        assert len(fake.requests) == number, changed


@pytest.mark.parametrize("path", sorted(FEW_SHOT.glob("*.txt")), ids=lambda path: path.stem)
def test_the_examples_are_what_is_asked_for(path: Path) -> None:
    """Each query of the files would be admitted for its passage, had the model written it."""
    loaded = read_examples(path.stem)
    other = next(name for name in FEW_SHOT.glob("*.txt") if name != path)
    assert len(loaded.passages) == 7
    for style, queries in loaded.queries.items():
        assert len(set(queries)) == len(queries)
        for passage, query in zip(loaded.passages, queries, strict=True):
            document = Document("1", "s", "ru", "", passage)
            shown = read_examples(other.stem)
            assert written_query(query, style, document, shown, is_whole=True) == query


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Заголовок файла", "block 1 after the heading"),
        ("Книги\n\nОтрывок: а\nВопрос: б", "block 1 after the heading must hold the lines Отрывок"),
        ("Книги\n\n" + "\n".join(f"{label}:" for label in LABELS), "block 1"),
    ],
)
def test_a_file_of_examples_with_a_fault_is_named(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "books.txt").write_text(content)
    with pytest.raises(StageError, match=message):
        read_examples("books", tmp_path)
    with pytest.raises(StageError, match=r"names novels, but .* take one of books,"):
        read_examples("novels", tmp_path)


TEXT = "Волга длинная. Она течёт на юг!\nДельта её широка, рыбы много."


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        (500, "Волга длинная. Она течёт на юг! Дельта её широка, рыбы много."),
        (60, "Волга длинная. Она течёт на юг!"),
        (31, "Волга длинная. Она течёт на юг!"),
        (30, "Волга длинная."),
        (13, "Волга"),
        (5, "Волга"),
        (3, "Вол"),
    ],
)
def test_a_passage_ends_with_a_sentence(characters: int, expected: str) -> None:
    assert shown_passage(Document("1", "s", "ru", "", TEXT), characters) == expected
