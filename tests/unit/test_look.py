"""`make check` reads the heads of the corpora and tells all faults at once."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import look
from tasks.params.data import Source
from tasks.params.load import Params, load_params

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
ROWS = [{"text": f"Текст номер {number}", "label": number % 3} for number in range(5)]

Finding = tuple[str, str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A benchmark whose one task has a table, and an empty folder of sources."""
    task = tmp_path / "benchmark" / "SampleSTS" / "default"
    task.mkdir(parents=True)
    pq.write_table(pa.table({"sentence1": ["Да."]}), task / "test.parquet")
    (tmp_path / "train").mkdir()
    return tmp_path


def params_of(root: Path, sources: dict[str, Source], tasks: dict[str, str]) -> Params:
    params = load_params(PROFILE)
    return params.model_copy(
        update={
            "data": params.data.model_copy(
                update={"corpus": str(root / "train"), "benchmark": str(root / "benchmark")}
            ),
            "ingest": params.ingest.model_copy(update={"sources": sources}),
            "evaluate": params.evaluate.model_copy(update={"tasks": tasks}),
        }
    )


def source(path: str, **changes: object) -> Source:
    layout = {"fields": {"query": "text", "label": "label"}, "task": "classification"}
    given = {"path": path, "format": path.rpartition(".")[2], "lang": "ru"}
    return Source.model_validate(given | layout | changes)


def found(root: Path, *sources: Source) -> list[Finding]:
    named = {f"s{number}": each for number, each in enumerate(sources)}
    return list(look.corpora(params_of(root, named, {"SampleSTS": "RuSTSBenchmarkSTS"})))


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_jsonl(path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.mark.parametrize(("layout", "write"), WRITERS.items())
def test_what_can_be_read_is_ok(corpus: Path, layout: str, write: Callable[[Path], None]) -> None:
    write(corpus / "train" / f"a.{layout}")
    assert [level for level, _ in found(corpus, source(f"a.{layout}"))] == ["ok"]


@pytest.mark.parametrize(("layout", "write"), WRITERS.items())
def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(
    corpus: Path, layout: str, write: Callable[[Path], None]
) -> None:
    write(corpus / "train" / f"a.{layout}")
    fields = {"query": "sentence", "label": "label"}
    results = found(corpus, source(f"a.{layout}", fields=fields))
    assert "error" in {level for level, _ in results}
    assert "['sentence']" in results[0][1]
    assert "'text'" in results[0][1]


def test_every_source_and_task_with_a_fault_is_named_in_one_go(corpus: Path) -> None:
    write_csv(corpus / "train" / "a.csv")
    (corpus / "train" / "b.parquet").write_bytes(b"no table")
    wrong_range = {
        "task": "sts",
        "fields": {"query": "text", "positive": "text", "score": "text"},
    }
    sources = {
        "fine": source("a.csv"),
        "missing": source("nowhere.csv"),
        "broken": source("b.parquet"),
        "unusable": source("a.csv", **wrong_range),
    }
    tasks = {"SampleSTS": "RuSTSBenchmarkSTS", "Gone": "RuSTSBenchmarkSTS"}
    results = list(look.corpora(params_of(corpus, sources, tasks)))
    assert [level for level, _ in results] == ["error"] * 4
    for (_, text), part in zip(
        results,
        ["nowhere.csv", "b.parquet", "refuse 5 of the first 5 rows of", "Gone"],
        strict=True,
    ):
        assert part in text


def test_a_benchmark_table_that_is_none_is_named(corpus: Path) -> None:
    write_csv(corpus / "train" / "a.csv")
    (corpus / "benchmark" / "SampleSTS" / "default" / "dev.parquet").write_bytes(b"no table")
    [(level, text)] = found(corpus, source("a.csv"))
    assert (level, "dev.parquet" in text) == ("error", True)


def test_only_the_first_rows_are_read_and_files_are_spread(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        write_jsonl(corpus / "train" / f"{number:02}.jsonl")
    opened: list[str] = []
    read = look.read_rows

    def reading(location: look.Location, columns: None) -> object:
        opened.append(location.name)
        return read(location, columns)

    monkeypatch.setattr(look, "read_rows", reading)
    monkeypatch.setattr(look, "FIRST_ROWS", 2)
    assert [level for level, _ in found(corpus, source("*.jsonl"))] == ["ok"]
    shards = [name for name in opened if name.endswith("jsonl")]
    assert (len(shards), shards[0], shards[-1]) == (look.MOST_FILES, "00.jsonl", "49.jsonl")


def test_a_task_that_evaluate_could_not_make_is_an_error_before_any_training(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    tasks = {"SampleSTS": "NoSuchTask"}
    [(level, text)] = look.evaluation(params_of(corpus, {}, tasks))
    assert (level, "unknown to mteb" in text) == ("error", True)
