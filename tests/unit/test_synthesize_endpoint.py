"""The stage with a language model: what becomes an example, what is refused, what survives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from tasks.contract.records import (
    DOCUMENT_SCHEMA,
    EVALUATION_SCHEMA,
    EXAMPLE_SCHEMA,
    read_table,
    text_id,
    write_table,
)
from tasks.contract.stage import StageError
from tasks.params.data import Endpoint
from tasks.params.load import Params, load_params
from tasks.synthesize.__main__ import synthesize
from tests.unit import fake_endpoint
from tests.unit.fake_endpoint import DEADLINE_S, KEY, FakeEndpoint, Reply, settings
from tests.unit.file_limit import files_up_to

ROOT = Path(__file__).parents[2]


fake, workplace = fake_endpoint.fake, fake_endpoint.workplace


def ingest(num_documents: int, *, evaluation: tuple[str, ...] = ("Проверка",)) -> None:
    documents = [
        {
            "id": text_id("documents", str(number)),
            "source": "documents",
            "lang": "ru",
            "title": f"Озеро {number}",
            "text": f"Озеро номер {number} лежит среди гор. Зимой оно замерзает.",
        }
        for number in range(num_documents)
    ]
    texts = [{"task": "STS", "text": text} for text in evaluation]
    folder = Path("artifacts/ingest")
    write_table(pa.Table.from_pylist(documents, DOCUMENT_SCHEMA), folder / "documents")
    write_table(pa.Table.from_pylist(texts, EVALUATION_SCHEMA), folder / "evaluation")
    write_table(pa.Table.from_pylist([], EXAMPLE_SCHEMA), folder / "development")


def params_for(endpoint: Endpoint, **changed: Any) -> Params:
    loaded = load_params(ROOT / "infra/profiles/pico.yaml")
    values = {"endpoint": endpoint, "max_documents": 100, "queries_per_document": 2} | changed
    return loaded.model_copy(update={"synthesize": loaded.synthesize.model_copy(update=values)})


def metrics() -> dict[str, Any]:
    return json.loads(Path("artifacts/synthesize/metrics.json").read_text())


def examples() -> list[dict[str, Any]]:
    return read_table(Path("artifacts/synthesize/examples")).to_pylist()


def test_queries_of_a_model_become_examples(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(3)
    synthesize(params_for(settings(fake.url)))
    rows = examples()
    assert len(rows) == 6
    assert {(row["task"], row["source"], row["lang"]) for row in rows} == {
        ("retrieval", "synthetic", "ru")
    }
    positive = "Озеро 1\nОзеро номер 1 лежит среди гор. Зимой оно замерзает."
    assert sum(row["positives"] == [positive] for row in rows) == 2
    assert metrics() == {
        "generator": "fake",
        "documents": 3,
        "skipped_documents": {},
        "examples": 6,
        "kinds": {"keywords": 6},
        "rejected": {},
        "answers": 18,
        "prompt_tokens": 180,
        "completion_tokens": 54,
    }


def test_a_second_run_gives_equal_bytes_and_asks_nothing(
    workplace: Path, fake: FakeEndpoint
) -> None:
    ingest(5)
    written = []
    for concurrency in (4, 1):
        synthesize(params_for(settings(fake.url, concurrency=concurrency)))
        files = sorted(Path("artifacts/synthesize").rglob("*.*"))
        written.append([path.read_bytes() for path in files])
        assert len(fake.requests) == 30
    assert written[0] == written[1]


def test_no_more_requests_are_in_flight_than_allowed(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(12)
    fake.script = lambda _number, _prompt: Reply(delay_s=0.02)
    synthesize(params_for(settings(fake.url, concurrency=3), queries_per_document=1))
    assert fake.most_in_flight == 3


def test_a_later_query_is_told_what_was_asked_before(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(1)
    synthesize(params_for(settings(fake.url)))
    assert "Не повторяй" not in fake.prompt(0)
    assert "Не повторяй того, что уже выбрано: юный химик, keywords." in fake.prompt(3)
    first = examples()[0]["query"]
    assert f"Спроси о другом, чем в этих запросах:\n- {first}\n" in fake.prompt(4)


@pytest.mark.parametrize(
    ("call", "content", "reason"),
    [
        ("question_type:", "как скажете", "plan_not_json"),
        ("question_type:", '{"character": "я", "question_type": ["a"]}', "plan_unknown_choice"),
        ("question_type:", '{"question_type": "summary"}', "plan_without_character"),
        ("Напиши один", "где озеро?", "query_not_json"),
        ("Напиши один", '{"query": " … "}', "query_empty"),
        ("Напиши один", '{"query": null}', "query_empty"),
        ("Напиши один", json.dumps({"query": "озеро " * 61}), "query_too_long"),
        ("Оцени", "5", "grade_not_json"),
        ("Оцени", '{"score": 6}', "grade_out_of_range"),
        ("Оцени", '{"score": true}', "grade_out_of_range"),
        ("Оцени", '{"score": 3}', "grade_too_low"),
    ],
)
def test_rubbish_is_rejected_and_counted(
    workplace: Path, fake: FakeEndpoint, call: str, content: str, reason: str
) -> None:
    """One document of three gets rubbish at one of the calls."""
    ingest(3)
    fake.script = lambda _number, prompt: Reply(
        content=content if call in prompt and "номер 1 " in prompt else None
    )
    synthesize(params_for(settings(fake.url), queries_per_document=1))
    assert metrics()["rejected"] == {reason: 1}
    assert metrics()["examples"] == 2


def test_a_copied_sentence_is_rejected(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(2)
    copied = '{"query": "озеро номер 1 лежит среди гор?"}'
    fake.script = lambda _n, p: Reply(
        content=copied if "Напиши один" in p and "номер 1 " in p else None
    )
    synthesize(params_for(settings(fake.url), queries_per_document=1))
    assert metrics()["rejected"] == {"query_copied": 1}


def test_only_rubbish_is_an_error_that_counts_it(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(2)
    fake.script = lambda _number, _prompt: Reply(content="извините")
    with pytest.raises(StageError, match=r"none of 2 documents .* {'plan_not_json': 4}"):
        synthesize(params_for(settings(fake.url)))
    assert not Path("artifacts/synthesize").exists()


def test_a_query_that_an_evaluation_holds_is_refused(workplace: Path, fake: FakeEndpoint) -> None:
    ingest(2, evaluation=("Сколько стоит самовар",))
    asked = '{"query": "сколько стоит самовар?"}'
    fake.script = lambda _n, p: Reply(
        content=asked if "Напиши один" in p and "номер 1 " in p else None
    )
    synthesize(params_for(settings(fake.url), queries_per_document=1))
    assert metrics()["rejected"] == {"evaluation_text": 1}


def test_when_the_disk_has_room_again_the_next_run_asks_only_for_the_rest(
    workplace: Path, fake: FakeEndpoint
) -> None:
    """A log of 60 kB holds some of the answers of 12 documents, not all."""
    ingest(12)
    params = params_for(settings(fake.url, concurrency=1))
    with (
        pytest.raises(StageError, match=r"answers\.sqlite cannot be used .* free the disk"),
        files_up_to(60_000),
    ):
        synthesize(params)
    assert not Path("artifacts/synthesize").exists()
    asked = len(fake.requests)
    assert 1 < asked < 72
    synthesize(params)
    assert len(examples()) == 24
    assert len(fake.requests) == 72 + 1, "only the answer that did not fit is paid for twice"


def test_after_a_failure_the_next_run_asks_only_for_the_rest(
    workplace: Path, fake: FakeEndpoint
) -> None:
    ingest(4)
    fake.script = lambda number, _prompt: Reply(status=200 if number < 10 else 503)
    endpoint = settings(fake.url, concurrency=1)
    with pytest.raises(StageError, match="Every answer so far is kept"):
        synthesize(params_for(endpoint))
    assert not Path("artifacts/synthesize").exists()
    failed = len(fake.requests) - 10
    fake.script = lambda _number, _prompt: Reply()
    synthesize(params_for(endpoint))
    assert len(fake.requests) - failed == 24


def test_a_killed_run_pays_for_nothing_twice(workplace: Path, fake: FakeEndpoint) -> None:
    """SIGKILL while the eleventh request is open: ten answers must be on disk."""
    ingest(5)
    fake.script = lambda number, _prompt: Reply(delay_s=60 if number == 10 else 0)
    values = yaml.safe_load((ROOT / "infra/profiles/pico.yaml").read_text())
    endpoint = settings(fake.url, concurrency=1, timeout_s=100)
    values["synthesize"] |= {"endpoint": endpoint.model_dump(), "queries_per_document": 1}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks.synthesize"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        fake.wait_for_requests(11)
        process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    assert len(fake.answered) == 10
    paid = list(fake.answered)
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    asked_again = [fake.prompt(number) for number in range(11, len(fake.requests))]
    assert len(asked_again) == 5
    assert not set(asked_again) & set(paid)
    assert KEY not in result.stderr
    assert "озеро" not in result.stderr.casefold()
