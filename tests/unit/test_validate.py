"""Validation: sound data passes with equal bytes, and each kind of damage is named."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks.contract.records import (
    DOCUMENT_SCHEMA,
    EVALUATION_SCHEMA,
    EXAMPLE_SCHEMA,
    QUARANTINE_SCHEMA,
    read_table,
    text_id,
    write_table,
)
from tasks.contract.stage import StageError, write_json
from tasks.params.load import Params, load_params
from tasks.validate.__main__ import validate
from tasks.validate.light_view import examples_view

# Great Expectations imports two modules that Python calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


def example(number: int, **changed: Any) -> Row:
    row: Row = {
        "id": text_id("questions", str(number)),
        "task": "retrieval",
        "source": "questions",
        "lang": "ru",
        "query": f"Где находится озеро номер {number}?",
        "positives": [f"Озеро номер {number} находится в Сибири."],
        "negatives": [f"Гора номер {number} находится на Урале."],
        "negative_scores": None,
        "label": None,
        "score": None,
    }
    return row | changed


def document(number: int, **changed: Any) -> Row:
    row: Row = {
        "id": text_id("documents", str(number)),
        "source": "documents",
        "lang": "ru",
        "title": f"Озеро {number}",
        "text": f"Озеро номер {number} лежит среди гор и зимой замерзает.",
    }
    return row | changed


def examples() -> list[Row]:
    """A hundred sound rows: retrieval, then two classes, then sts."""
    rows = [example(number) for number in range(80)]
    for number in range(80, 90):
        labelled = {"task": "classification", "source": "topics", "label": f"l{number % 2}"}
        rows.append(example(number, **labelled))
    for number in range(90, 100):
        rows.append(example(number, task="sts", negatives=[], score=(number - 90) / 9))
    return rows


class Ingested:
    """The tables of a sound ingest, to be damaged by a test before they are written."""

    def __init__(self) -> None:
        self.examples = examples()
        self.development = [example(number) for number in range(200, 210)]
        self.documents = [document(number) for number in range(60)]
        self.evaluation = [{"task": "STS", "text": f"Текст проверки номер {n}"} for n in range(5)]
        self.quarantine: list[Row] = []

    def write(self) -> None:
        schemas = {
            "examples": EXAMPLE_SCHEMA,
            "development": EXAMPLE_SCHEMA,
            "documents": DOCUMENT_SCHEMA,
            "evaluation": EVALUATION_SCHEMA,
            "quarantine": QUARANTINE_SCHEMA,
        }
        folder = Path("artifacts/ingest")
        folder.mkdir(parents=True)
        for name, schema in schemas.items():
            # A source may break the promise of the schema; the stage must say so.
            loose = pa.schema([field.with_nullable(True) for field in schema])
            write_table(pa.Table.from_pylist(getattr(self, name), loose), folder / name)
        write_json(folder / "metrics.json", {"totals": {"read": 1000}})


@pytest.fixture
def ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ingested:
    monkeypatch.chdir(tmp_path)
    return Ingested()


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "infra/profiles/pico.yaml")


def content(folder: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_sound_data_passes_and_writes_equal_bytes_twice(ingested: Ingested, params: Params) -> None:
    ingested.write()
    validate(params)
    first = content("artifacts/validate")
    validate(params)
    assert content("artifacts/validate") == first
    assert json.loads(first["passed.json"]) == {"passed": True}
    assert json.loads(first["summary.json"])["success"] is True
    assert json.loads(first["metrics.json"])["failed"] == 0
    assert json.loads(first["metrics.json"])["rows"]["examples"] == 100


def test_documents_alone_pass_without_examples(ingested: Ingested, params: Params) -> None:
    """Their queries are written after this stage, so no number of examples can be asked for."""
    ingested.examples = ingested.development = []
    ingested.write()
    with pytest.raises(StageError, match="at least 100 rows"):
        validate(params)
    sources = {"documents": params.ingest.sources["documents"]}
    ingest = params.ingest.model_copy(update={"sources": sources})
    validate(params.model_copy(update={"ingest": ingest}))
    assert Path("artifacts/validate/passed.json").exists()


def test_the_pages_ask_the_network_for_nothing(ingested: Ingested, params: Params) -> None:
    ingested.write()
    validate(params)
    pages = list(Path("artifacts/validate/data_docs").iterdir())
    assert {page.suffix for page in pages} == {".html", ".css"}
    for page in pages:
        text = page.read_text()
        assert not re.search(r"https?://|//cdn|<script|@import|url\(", text), page.name
        for link in re.findall(r'(?:href|src)="([^"#]+)', text):
            assert (page.parent / link).is_file(), f"{link} in {page.name}"


def damage(data: Ingested) -> None:
    """Break every check once, each in rows of its own."""
    rows = data.examples
    rows[0]["query"] = rows[1]["query"] = None
    rows[2]["query"] = " \n"
    rows[3]["query"] = "а" * 20001
    rows[4]["positives"], rows[5]["positives"] = [], None
    rows[6]["positives"], rows[7]["positives"] = ["да", ""], ["да", None]
    rows[8]["positives"] = ["б" * 20001]
    rows[9]["negatives"] = [" "]
    rows[10] |= {"positives": ["а", "б"], "negatives": ["в", "б"]}
    rows[11]["negative_scores"] = [0.5, 0.5]
    rows[12]["task"] = "poetry"
    rows[13]["source"] = ""
    rows[14]["id"] = rows[15]["id"]
    rows[16]["positives"] = ["«Текст проверки», НОМЕР 3!"]
    rows[17]["negatives"] = ["текст проверки номер 3"]
    rows[18]["positives"] = ["где находится озеро номер 205"]
    for row in rows[20:31]:
        row["lang"] = "en"
    for row in rows[41:48]:
        row |= {key: rows[40][key] for key in ("query", "positives")}
    rows[80]["label"] = None
    rows[81]["label"] = "rare"
    rows[95]["score"] = 1.5
    rows[96]["score"] = None
    data.documents[3]["text"] = "Текст  проверки номер 3."
    data.documents[4]["text"] = " "
    refused = {"source": "a", "file": "a", "reason": "too_long", "detail": "", "content": ""}
    data.quarantine = [refused | {"row": number} for number in range(301)]


@pytest.fixture(scope="module")
def complaint(params: Params, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the stage says of an ingest in which every check is broken."""
    data = Ingested()
    damage(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("broken"))
        data.write()
        with pytest.raises(StageError) as caught:
            validate(params)
    return str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "the query is never missing: 2 of 100",
        "the query has 1 to 20000 characters: 2 of 100 .* value 0; .* value 20001$",
        "there is at least one positive: 2 of 100",
        "no positive is empty: 2 of 100",
        "every positive has at most 20000 characters: 1 of 100 .* value 20001$",
        "no negative is empty: 1 of 100",
        "no positive is among the negatives: 1 of 100",
        "negative scores, where given, are as many as negatives: 1 of 100",
        "the task is one that training knows: 1 of 100 .* value poetry$",
        "the source is never missing: 1 of 100",
        r"every score lies in \[0, 1\]: 1 of 100 .* value 1.5$",
        "sts rows have a score: 1 of 100",
        "classification and clustering rows have a label: 1 of 100",
        "every label has at least two rows in its source: 1 of 100 .* source topics, value 1$",
        "at least 90.0% of the rows are in ru: 11 of 100 .* value en$",
        "at most 5.0% of the rows repeat an earlier row: 7 of 100",
        "no two rows share the id: 2 of 100",
        "no text equals a text of an evaluation set: 2 of 100",
        "no query or positive equals a query of the development split: 1 of 100",
    ],
)
def test_damage_of_examples_is_named_with_its_rows(complaint: str, message: str) -> None:
    assert re.search(f"^  examples: not true that {message}", complaint, re.MULTILINE)


@pytest.mark.parametrize(
    "message",
    [
        "documents: not true that no text equals a text of an evaluation set: 1 of 60",
        "documents: not true that no text is empty: 1 of 60",
        "run: not true that at most 30% of the rows read were refused: 1 of 1 rows .*, such as "
        r"rows_read 1000, refused 301 too_long \(ingest\.max_characters\), value 0\.301$",
    ],
)
def test_damage_elsewhere_is_named_with_its_rows(complaint: str, message: str) -> None:
    assert re.search(f"^  {message}", complaint, re.MULTILINE)


def test_nothing_else_is_called_damaged(complaint: str) -> None:
    assert complaint.startswith("22 of 64 checks of the ingested data failed:")


def test_an_empty_table_fails(ingested: Ingested, params: Params) -> None:
    """Every check of a column succeeds on no rows."""
    for table in (ingested.examples, ingested.documents, ingested.development):
        table.clear()
    ingested.write()
    with pytest.raises(StageError) as caught:
        validate(params)
    assert str(caught.value).splitlines()[1:-1] == [
        "  examples: not true that there are at least 100 rows: 0 rows",
        "  development: not true that there are at least 1 rows: 0 rows",
        "  documents: not true that there are at least 50 rows: 0 rows",
    ]


def test_a_tolerated_share_passes(ingested: Ingested, params: Params) -> None:
    """Ten rows in another language are just the tenth that the profile allows."""
    for row in ingested.examples[:10]:
        row["lang"] = "en"
    ingested.write()
    validate(params)
    summary = json.loads(Path("artifacts/validate/summary.json").read_text())
    checks = {check["says"]: check for check in summary["suites"][0]["checks"]}
    tolerant = checks["at least 90.0% of the rows are in ru"]
    assert tolerant["success"] is True
    assert tolerant["unexpected_count"] == 10
    assert [row["value"] for row in tolerant["examples"]] == ["en"] * 3


def test_a_short_evaluation_text_in_the_corpus_is_no_leak(
    ingested: Ingested, params: Params
) -> None:
    """`Yes` is an answer of some benchmark and of every corpus."""
    ingested.evaluation.append({"task": "NLI", "text": "Да"})
    ingested.examples[3]["positives"] = ["Да."]
    ingested.write()
    validate(params)


def test_a_rare_label_beside_a_common_one_passes(ingested: Ingested, params: Params) -> None:
    ingested.examples[85]["label"] = "l1|rare"
    ingested.write()
    validate(params)


def test_after_a_breach_the_pages_lie_elsewhere_and_nothing_looks_like_success(
    ingested: Ingested, params: Params
) -> None:
    Path("artifacts/validate").mkdir(parents=True)
    ingested.examples[95]["score"] = 1.5
    ingested.write()
    with pytest.raises(
        StageError, match=r"Look at artifacts/validate-failed/data_docs/index\.html"
    ):
        validate(params)
    assert not Path("artifacts/validate").exists()
    failed = Path("artifacts/validate-failed")
    assert not (failed / "passed.json").exists()
    assert json.loads((failed / "summary.json").read_text())["success"] is False
    page = (failed / "data_docs/index.html").read_text()
    assert "1 of 64 checks failed" in page
    assert "Где находится озеро номер 95?" in page


def test_a_message_holds_no_text_of_the_corpus(ingested: Ingested, params: Params) -> None:
    ingested.examples[95]["score"] = 1.5
    ingested.write()
    with pytest.raises(StageError) as caught:
        validate(params)
    assert "озеро" not in str(caught.value)


def test_the_next_success_removes_the_pages_of_the_breach(
    ingested: Ingested, params: Params
) -> None:
    Path("artifacts/validate-failed").mkdir(parents=True)
    ingested.write()
    validate(params)
    assert not Path("artifacts/validate-failed").exists()


def test_texts_are_escaped_in_the_pages(ingested: Ingested, params: Params) -> None:
    ingested.examples[95] |= {"score": 2.0, "query": "<script>alert(1)</script>"}
    ingested.write()
    with pytest.raises(StageError):
        validate(params)
    page = Path("artifacts/validate-failed/data_docs/index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page


def test_wrong_columns_are_reported_alone(ingested: Ingested, params: Params) -> None:
    ingested.write()
    folder = Path("artifacts/ingest/documents")
    table = read_table(folder).drop_columns(["title"]).append_column("size", pa.array([1] * 60))
    for path in folder.iterdir():
        path.unlink()
    write_table(table, folder)
    with pytest.raises(StageError, match=r"documents-columns: .* 2 of 6 rows") as caught:
        validate(params)
    assert "column title, expected string, found missing" in str(caught.value)
    assert "column size, expected missing, found int64" in str(caught.value)


def test_the_light_view_equals_a_plain_computation() -> None:
    rows = [*examples(), example(3, negatives=["б", "б"], positives=["а", "бб "])]
    view = examples_view(
        pa.Table.from_pylist(rows, EXAMPLE_SCHEMA),
        in_evaluation={rows[4]["query"]},
        in_development={rows[5]["positives"][0], rows[6]["negatives"][0]},
    )
    for row, seen in zip(rows, view.to_dict("records"), strict=True):
        lengths = [len(text.strip()) for text in row["positives"]]
        assert seen["query_characters"] == len(row["query"])
        assert (seen["shortest_positive"], seen["longest_positive"]) == (min(lengths), max(lengths))
        label = [other for other in rows if row["label"] and other["label"] == row["label"]]
        assert len(label) == (seen["rows_of_label"] if label else 0)
        assert seen["text_in_evaluation"] == (row is rows[4])
        assert seen["text_in_development"] == (row is rows[5])
