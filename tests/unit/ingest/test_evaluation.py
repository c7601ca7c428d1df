"""Which strings of the benchmark count as evaluation texts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contract.stage import StageError
from tasks.ingest.evaluation import Benchmark, read_benchmark


def benchmark(root: Path, **columns: Any) -> Benchmark:
    return splits(root, {"test": columns})


def splits(root: Path, tables: dict[str, dict[str, Any]]) -> Benchmark:
    folder = root / "Task" / "default"
    folder.mkdir(parents=True)
    for split, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return read_benchmark(str(root), None)


def test_strings_and_lists_of_strings_are_texts(tmp_path: Path) -> None:
    found = benchmark(tmp_path, text=["а", " б  в "], positive=[["г", "д"], ["е"]], n=[1, 2])
    assert found.evaluation["text"].to_pylist() == ["а", "б в", "г", "д", "е"]
    assert set(found.evaluation["task"].to_pylist()) == {"Task"}


@pytest.mark.parametrize(
    "column", ["id", "_id", "query-id", "corpus_id", "label", "labels", "label_text", "lang"]
)
def test_identifiers_and_labels_are_no_texts(tmp_path: Path, column: str) -> None:
    found = benchmark(tmp_path, text=["а"], **{column: ["не текст"]})
    assert found.evaluation["text"].to_pylist() == ["а"]


def test_queries_that_repeat_are_texts(tmp_path: Path) -> None:
    """A reranking task has one row per query and document."""
    found = benchmark(tmp_path, query=["первый", "второй"] * 20)
    assert found.evaluation["text"].to_pylist() == ["первый", "второй"]


@pytest.mark.parametrize("column", ["source", "target", "class", "category"])
def test_a_column_of_any_other_name_holds_texts(tmp_path: Path, column: str) -> None:
    assert benchmark(tmp_path, **{column: ["а"]}).evaluation["text"].to_pylist() == ["а"]


def test_texts_in_structs_and_binary_columns_are_texts(tmp_path: Path) -> None:
    rows = [{"ru": "а", "id": "не текст", "more": [{"body": "б"}]}]
    found = benchmark(tmp_path, pair=rows, raw=["в".encode()], image=[b"\xff\xd8"])
    assert found.evaluation["text"].to_pylist() == ["а", "б", "в"]


def test_texts_in_maps_and_in_every_kind_of_table_are_texts(tmp_path: Path) -> None:
    column = pa.array([[("ru", "а")]], pa.map_(pa.string(), pa.string()))
    benchmark(tmp_path, translation=column)
    folder = tmp_path / "Task" / "default"
    (folder / "more.tsv").write_text("text\tn\nб\t1\n", encoding="utf-8")
    table = pa.table({"text": ["в"]})
    with pa.ipc.new_stream(folder / "last.arrow", table.schema) as stream:
        stream.write_table(table)
    found = read_benchmark(str(tmp_path), None).evaluation["text"].to_pylist()
    assert {"а", "б", "в"} <= set(found)


def test_a_text_of_a_task_stands_once(tmp_path: Path) -> None:
    assert len(benchmark(tmp_path, text=["а", "б", "а"]).evaluation) == 2


def test_the_train_split_is_kept_apart(tmp_path: Path) -> None:
    found = splits(tmp_path, {"train": {"text": ["учебный"]}, "test": {"text": ["проверочный"]}})
    assert found.evaluation["text"].to_pylist() == ["проверочный"]
    assert found.train["text"].to_pylist() == ["учебный"]


def test_a_task_with_only_a_train_split_is_scored_on_it(tmp_path: Path) -> None:
    found = splits(tmp_path, {"train": {"text": ["учебный"]}})
    assert found.evaluation["text"].to_pylist() == ["учебный"]
    assert len(found.train) == 0


def test_a_task_without_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="task Task has no column of texts"):
        benchmark(tmp_path, label=["а"])


def test_a_broken_line_of_the_benchmark_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "Task").mkdir()
    (tmp_path / "Task" / "test.jsonl").write_text('{"text": "а"}\n{"text"\n', encoding="utf-8")
    with pytest.raises(StageError, match=r"row 1 of Task/test\.jsonl"):
        read_benchmark(str(tmp_path), None)


def test_the_queries_of_a_reranking_task_stay_out_of_the_training(corpus, words: list[str]) -> None:
    query = "кто первым поднялся на эту гору зимой"
    corpus.evaluate("Rerank", {"query": [query] * 20, "source": [" ".join(words[::-1])] * 20})
    rows = [{"q": query, "p": "ответ"}, {"q": "иное", "p": f"Итак, {' '.join(words[::-1])}"}]
    corpus.jsonl("leaky", "retrieval", [*rows, {"q": "кот", "p": "пёс"}], query="q", positive="p")
    corpus.run()
    assert corpus.refused("leaky") == [(0, "evaluation_overlap"), (1, "evaluation_overlap")]
