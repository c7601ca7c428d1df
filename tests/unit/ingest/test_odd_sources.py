"""Sources as they come: nulls, floats for labels, tables of Excel, odd texts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq


def test_labels_that_pandas_made_floats_are_whole_and_nulls_are_counted(corpus) -> None:
    rows = [{"q": f"строка номер {n}", "l": [None, 1.0, 0.0][n % 3]} for n in range(9)]
    corpus.jsonl("floats", "classification", rows, query="q", label="l")
    metrics = corpus.run()["sources"]["floats"]
    assert metrics["quarantined"] == {"invalid": 3}
    labels = {row["label"] for row in corpus.table("examples") if row["source"] == "floats"}
    assert labels == {"0", "1"}


def test_a_parquet_source_with_null_cells_and_numbers_is_read_row_by_row(corpus) -> None:
    table = pa.table({"q": ["вопрос", None, "ещё"], "p": ["ответ", "ответ", None]})
    pq.write_table(table, corpus.root / "corpus" / "nulls.parquet")
    corpus.declare("nulls", "nulls.parquet", "parquet", "retrieval", query="q", positive="p")
    corpus.run()
    assert corpus.refused("nulls") == [(1, "invalid"), (2, "invalid")]


def test_a_table_that_excel_saved_in_russia_is_read(corpus) -> None:
    lines = ["вопрос;ответ", *(f"где живёт кот номер {n};кот живёт в доме {n}" for n in range(9))]
    content = "\r\n".join(lines).encode("cp1251")
    corpus.raw("excel", "retrieval", "csv", content, query="вопрос", positive="ответ")
    assert corpus.run()["sources"]["excel"]["kept"] == 9


def test_a_declared_encoding_and_separator_are_used(corpus) -> None:
    content = "q,1|p\nвопрос|ответ\n".encode("cp1251")
    source = corpus.raw("short", "retrieval", "csv", content, query="q,1", positive="p")
    source |= {"encoding": "windows-1251", "separator": "|"}
    corpus.run()
    rows = [row for row in corpus.table("examples") if row["source"] == "short"]
    assert [(row["query"], row["positives"]) for row in rows] == [("вопрос", ["ответ"])]


def test_an_odd_text_is_kept_or_refused_with_a_reason(corpus) -> None:
    odd = {
        "   \t \n": "empty",
        "1": "too_short",
        "а" * 100_000: "too_long",
        "\u200b\ufeff\u202e": "empty",
        "😀👍🏽👨\u200d👩\u200d👧": "😀👍🏽👨\u200d👩\u200d👧",
        "с \x00 нулём": "с нулём",
        "одинокий \ud83d суррогат": "одинокий суррогат",
        "нуль\u200bширинный": "нуль ширинный",
        "\u202eперевёрнутый": "перевёрнутый",
        "שלום עולם": "שלום עולם",
        "\ufeffметка": "метка",
        "U+2028\u2028строка": "U+2028\nстрока",
        "???!!!": "???!!!",
    }
    rows = [{"q": text, "p": f"ответ номер {n}"} for n, text in enumerate(odd)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    corpus.raw("odd", "retrieval", "jsonl", lines.encode(), query="q", positive="p")
    corpus.run()
    kept = {r["positives"][0]: r["query"] for r in corpus.table("examples") if r["source"] == "odd"}
    found = dict(corpus.refused("odd")) | {int(p.split()[-1]): q for p, q in kept.items()}
    assert [found[number] for number in range(len(odd))] == list(odd.values())
