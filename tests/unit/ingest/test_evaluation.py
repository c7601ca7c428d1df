"""Which strings of the benchmark count as evaluation texts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contract.stage import StageError
from tasks.ingest.evaluation import Benchmark, read_benchmark
from tasks.params.data import Overlap


def benchmark(root: Path, **columns: Any) -> Benchmark:
    return splits(root, {"test": columns})


def splits(root: Path, tables: dict[str, dict[str, Any]]) -> Benchmark:
    folder = root / "Task" / "default"
    folder.mkdir(parents=True)
    for split, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return read_benchmark(str(root), None, {})


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
    found = read_benchmark(str(tmp_path), None, {}).evaluation["text"].to_pylist()
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
        read_benchmark(str(tmp_path), None, {})


def test_the_queries_of_a_reranking_task_stay_out_of_the_training(corpus, words: list[str]) -> None:
    query = "кто первым поднялся на эту гору зимой"
    corpus.evaluate("Rerank", {"query": [query] * 20, "source": [" ".join(words[::-1])] * 20})
    rows = [{"q": query, "p": "ответ"}, {"q": "иное", "p": f"Итак, {' '.join(words[::-1])}"}]
    corpus.jsonl("leaky", "retrieval", [*rows, {"q": "кот", "p": "пёс"}], query="q", positive="p")
    corpus.run()
    assert corpus.refused("leaky") == [(0, "evaluation_overlap"), (1, "evaluation_overlap")]


def retrieval(root: Path, prefix: str = "", **changes: dict[str, Any]) -> None:
    tables = {
        "corpus": {"_id": ["d1", "d2", "d3"], "title": [""] * 3, "text": ["раз", "два", "три"]},
        "queries": {"_id": ["q1", "q2"], "text": ["где", "кто"]},
        "qrels": {"query-id": ["q1", "q2"], "corpus-id": ["d2", "d9"], "score": [1, 0]},
    }
    for config, columns in tables.items():
        folder = root / "Search" / f"{prefix}{config}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns | changes.get(config, {})), folder / "test.parquet")


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ({}, ["где", "два", "кто", "раз", "три"]),
        ({"Search": "everything"}, ["где", "два", "кто", "раз", "три"]),
        ({"Search": "judged"}, ["где", "два", "кто"]),
        ({"Search": "queries"}, ["где", "кто"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "ru-"])
def test_a_part_of_a_retrieval_task_may_be_compared(
    tmp_path: Path, overlap: dict[str, Overlap], expected: list[str], prefix: str
) -> None:
    retrieval(tmp_path, prefix)
    found = read_benchmark(str(tmp_path), None, overlap).evaluation["text"].to_pylist()
    assert sorted(found) == expected


def test_a_task_without_a_corpus_is_compared_whole(tmp_path: Path) -> None:
    benchmark(tmp_path, text=["а"])
    with pytest.raises(StageError, match=r"ingest\.overlap\.Task is queries, .*remove the entry"):
        read_benchmark(str(tmp_path), None, {"Task": "queries"})


def test_overlap_of_a_task_that_is_not_there_is_named(tmp_path: Path) -> None:
    benchmark(tmp_path, text=["а"])
    with pytest.raises(StageError, match=r"ingest\.overlap names \['Tsk'\], .*holds \['Task'\]"):
        read_benchmark(str(tmp_path), None, {"Tsk": "queries"})


def test_judged_documents_that_no_corpus_holds_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retrieval(tmp_path)
    read_benchmark(str(tmp_path), None, {})
    assert "task Search: 1 of 2 documents in its qrels are not in its corpus" in caplog.text


@pytest.mark.parametrize("config", ["corpus", "queries"])
@pytest.mark.parametrize("column", ["_id", "text"])
def test_a_null_document_or_query_is_named_with_its_row(
    tmp_path: Path, config: str, column: str
) -> None:
    values = ["раз", None, "три"] if config == "corpus" else ["где", None]
    retrieval(tmp_path, **{config: {column: values}})
    told = rf"row 1 of Search/{config}/test\.parquet has null as {column}, .*remove the row"
    with pytest.raises(StageError, match=told):
        read_benchmark(str(tmp_path), None, {})


def own_knowledge_base(corpus, share: float) -> None:
    """A task made of the very documents that are trained on."""
    texts = [f"статья базы знаний о предмете номер {number}" for number in range(20)]
    own = [f"d{number}" for number in range(20)]
    retrieval(
        corpus.root / "benchmark",
        corpus={"_id": own, "title": [""] * 20, "text": texts},
        qrels={"query-id": ["q1", "q2"], "corpus-id": ["d3", "d4"], "score": [1, 1]},
    )
    rows = [{"q": f"что известно о {n}", "p": text} for n, text in enumerate(texts)]
    corpus.jsonl("base", "retrieval", rows, query="q", positive="p")
    corpus.params["ingest"]["max_overlap_share"] = share


def test_a_source_that_evaluation_texts_erase_stops_the_run_with_advice(corpus) -> None:
    own_knowledge_base(corpus, share=0.5)
    told = (
        r"source base: 20 of its 20 rows hold evaluation texts \(by task: {'Search': 20}\), more "
        r"than ingest\.max_overlap_share 0\.5: .*ingest\.overlap to {Search: judged}"
    )
    with pytest.raises(StageError, match=told):
        corpus.run()


def test_the_documents_that_are_not_judged_stay_where_that_is_declared(corpus) -> None:
    own_knowledge_base(corpus, share=0.1)
    corpus.params["ingest"]["overlap"] = {"Search": "judged"}
    corpus.run()
    assert corpus.refused("base") == [(3, "evaluation_overlap"), (4, "evaluation_overlap")]
