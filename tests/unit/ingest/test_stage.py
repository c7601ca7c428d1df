"""The whole stage on a small corpus: what is kept and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tasks.contract.stage import StageError


def pairs(*texts: str) -> list[dict[str, str]]:
    """Rows whose query and positive are told apart by one word each."""
    return [{"q": f"вопрос {text}", "p": f"ответ {text}"} for text in texts]


def test_examples_follow_the_contract(corpus) -> None:
    corpus.jsonl(
        "nli", "nli", [{"q": "кот спит", "p": "кот дремлет", "n": "кот ест"}],
        query="q", positive="p", negative="n",
    )  # fmt: skip
    corpus.run()
    row = next(row for row in corpus.table("examples") if row["source"] == "nli")
    assert row.pop("id")
    assert row == {
        "task": "nli",
        "source": "nli",
        "lang": "ru",
        "query": "кот спит",
        "positives": ["кот дремлет"],
        "negatives": ["кот ест"],
        "positive_scores": None,
        "negative_scores": None,
        "label": None,
        "score": None,
    }


def test_ids_are_unique_and_stable(corpus) -> None:
    corpus.run()
    first = [row["id"] for row in corpus.table("examples")]
    corpus.jsonl("more", "retrieval", pairs("ещё один"), query="q", positive="p")
    corpus.run()
    again = [row["id"] for row in corpus.table("examples") if row["source"] == "questions"]
    assert first == again
    assert len(set(first)) == len(first)


def test_counts_add_up_to_the_rows_read(corpus, words: list[str]) -> None:
    corpus.params["ingest"]["development_fraction"] = 0.3
    rows = [*pairs(*words), *pairs(words[0]), {"q": "", "p": "вг"}, {"q": None, "p": "вг"}]
    rows.append({"q": " ".join(words), "p": "вг"})
    corpus.jsonl("mixed", "nli", rows, query="q", positive="p")["max_rows"] = 10
    metrics = corpus.run()
    for name, source in metrics["sources"].items():
        used = source["kept"] + source["development"] + source["unsampled"]
        assert source["read"] == used + sum(source["quarantined"].values()), name
    mixed = metrics["sources"]["mixed"]
    assert mixed["read"] == 19
    assert mixed["unsampled"] == 5
    refused = sum(sum(source["quarantined"].values()) for source in metrics["sources"].values())
    assert refused == metrics["totals"]["quarantine"] == len(corpus.table("quarantine"))


def test_refused_rows_are_kept_with_place_and_reason(corpus) -> None:
    lines = '{"q": "вопрос", "p": "ответ"}\n{"q": "вопрос"\n{"q": "а", "p": "ответ"}\n'
    corpus.raw("broken", "retrieval", "jsonl", lines.encode(), query="q", positive="p")
    corpus.run()
    assert corpus.refused("broken") == [(1, "broken_json"), (2, "too_short")]
    row = next(row for row in corpus.table("quarantine") if row["source"] == "broken")
    assert row["file"] == "broken.jsonl"
    assert row["content"] == '{"q": "вопрос"'


def test_of_a_long_refused_text_500_characters_are_kept(corpus) -> None:
    rows = [{"q": "а" * 30_000, "p": "вг"}, *pairs("один")]
    corpus.jsonl("long", "retrieval", rows, query="q", positive="p")
    corpus.run()
    row = next(row for row in corpus.table("quarantine") if row["source"] == "long")
    assert (row["reason"], len(row["content"])) == ("too_long", 500)
    assert row["detail"] == "q has 30000 characters, more than ingest.max_characters 20000"


def test_long_texts_are_told_with_their_limit(corpus, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "а" * 30_000}, {"text": "б" * 30_000}, {"text": "короткий"}]
    corpus.jsonl("long", "documents", rows, text="text")
    metrics = corpus.run()
    assert metrics["limits"] == {"min_characters": 2, "max_characters": 20000}
    told = "source long: 2 of 3 rows hold a text longer than ingest.max_characters 20000"
    (record,) = (record for record in caplog.records if told in record.getMessage())
    assert record.levelname == "WARNING"


@pytest.mark.parametrize("column", ["q", "p", "n"])
def test_a_row_with_an_evaluation_text_anywhere_is_refused(
    corpus, words: list[str], column: str
) -> None:
    leak = {"q": "вопрос", "p": "ответ", "n": "иное", column: f"Начало: {' '.join(words)}."}
    rows = [leak, {"q": "кот", "p": "пёс", "n": "мышь"}]
    corpus.jsonl("leaky", "nli", rows, query="q", positive="p", negative="n")
    corpus.run()
    assert corpus.refused("leaky") == [(0, "evaluation_overlap")]
    row = next(row for row in corpus.table("quarantine") if row["source"] == "leaky")
    assert row["detail"].startswith("Task: 13 words: альфа бета")


def test_a_document_whose_title_is_an_evaluation_text_is_refused(corpus) -> None:
    corpus.evaluate("Titles", {"text": ["Заголовок одной новости"]})
    rows = [{"t": "Заголовок одной новости", "x": "текст новости"}, {"t": "", "x": "иной текст"}]
    corpus.jsonl("news", "documents", rows, title="t", text="x")
    corpus.run()
    assert corpus.refused("news") == [(0, "evaluation_overlap")]


def test_rows_of_a_train_split_stay_and_are_counted(corpus) -> None:
    corpus.evaluate("Topics", {"text": ["проверочный текст темы"]}, "test")
    corpus.evaluate("Topics", {"text": ["Вопрос альфа!!", "вопрос бета"]}, "train")
    metrics = corpus.run()
    # Two words and 10 letters could be a coincidence: only the longer text is counted.
    assert metrics["sources"]["questions"]["in_domain"] == {}
    corpus.evaluate("Topics", {"text": ["Вопрос омикрон!!"]}, "train")
    assert corpus.run()["sources"]["questions"]["in_domain"] == {"Topics": 1}
    assert corpus.refused("questions") == []


def test_equal_pairs_of_a_task_stay_once_over_all_sources(corpus) -> None:
    rows = [{"q": "Вопрос альфа?", "p": "Ответ НА альфа"}, *pairs("новое")]
    corpus.jsonl("again", "retrieval", rows, query="q", positive="p")
    corpus.run()
    assert corpus.refused("again") == [(0, "duplicate")]
    row = corpus.table("quarantine")[0]
    assert row["detail"] == "same as row 0 of questions.jsonl"


def test_equal_pairs_of_different_tasks_both_stay(corpus) -> None:
    rows = [{"q": "вопрос альфа", "p": "ответ на альфа"}]
    corpus.jsonl("again", "nli", rows, query="q", positive="p")
    corpus.run()
    assert corpus.refused("again") == []


def test_equal_documents_stay_once(corpus) -> None:
    rows = [{"text": "Документ об ином."}, {"text": "новый документ"}]
    corpus.jsonl("copies", "documents", rows, text="text")
    corpus.run()
    assert corpus.refused("copies") == [(0, "duplicate")]
    assert [row["text"] for row in corpus.table("documents")] == [
        "документ об ином",
        "новый документ",
    ]


def test_a_text_with_two_labels_keeps_the_first(corpus) -> None:
    rows = [{"q": "текст", "l": label} for label in ("а", "б", "а")]
    corpus.jsonl("topics", "classification", [*rows, *labelled(*"абаб")], query="q", label="l")
    corpus.run()
    assert corpus.refused("topics") == [(1, "label_conflict"), (2, "duplicate")]


def labelled(*labels: str) -> list[dict[str, str]]:
    return [{"q": f"текст номер {number}", "l": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize("task", ["classification", "clustering"])
def test_labelled_rows_get_partners_of_their_own_and_of_other_classes(corpus, task: str) -> None:
    corpus.params["ingest"]["class_negatives"] = 3
    labels = ["а", "б", "в"] * 4
    corpus.jsonl("topics", task, labelled(*labels), query="q", label="l")
    corpus.run()
    rows = [row for row in corpus.table("examples") if row["source"] == "topics"]
    of_text = {row["query"]: row["label"] for row in rows}
    assert len(rows) == 12
    for row in rows:
        (positive,) = row["positives"]
        assert positive != row["query"]
        assert of_text[positive] == row["label"]
        assert len(set(row["negatives"])) == 3
        assert row["label"] not in {of_text[text] for text in row["negatives"]}


def test_a_label_with_one_member_is_refused(corpus) -> None:
    corpus.jsonl(
        "topics", "classification", labelled("а", "б", "а", "б", "в"), query="q", label="l"
    )
    corpus.run()
    assert corpus.refused("topics") == [(4, "label_with_one_member")]


def test_several_labels_are_joined_and_negatives_share_none(corpus) -> None:
    rows = labelled("б,а", "а", "б", "в", "в,г", "г")
    corpus.jsonl("topics", "classification", rows, query="q", label="l")["label_separator"] = ","
    corpus.run()
    rows = [row for row in corpus.table("examples") if row["source"] == "topics"]
    of_text = {row["query"]: set(row["label"].split("|")) for row in rows}
    assert rows[0]["label"] == "а|б"
    for row in rows:
        own = of_text[row["query"]]
        assert own & of_text[row["positives"][0]]
        assert all(own.isdisjoint(of_text[text]) for text in row["negatives"])


def test_scores_are_mapped_to_the_unit_interval(corpus) -> None:
    rows = [{"q": f"фраза {n}", "p": f"слова {n}", "s": n} for n in range(7)]
    source = corpus.jsonl("sts", "sts", rows, query="q", positive="p", score="s")
    source["score_range"] = [0, 5]
    corpus.run()
    scores = [row["score"] for row in corpus.table("examples") if row["source"] == "sts"]
    assert scores == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert corpus.refused("sts") == [(6, "score_out_of_range")]


def test_rows_in_other_languages_are_refused(corpus) -> None:
    rows = [
        {"q": "Где находится аптека?", "p": "Аптека находится за углом."},
        {"q": "Where is the pharmacy?", "p": "The pharmacy is around the corner."},
    ]
    corpus.jsonl("mixed", "retrieval", rows, query="q", positive="p")["lang"] = None
    corpus.run()
    assert corpus.refused("mixed") == [(1, "language")]
    kept = [row["lang"] for row in corpus.table("examples") if row["source"] == "mixed"]
    assert kept == ["ru"]


def test_a_translation_pair_has_the_language_of_its_query(corpus) -> None:
    rows = [
        {"q": "Где находится аптека?", "p": "Where is the nearest pharmacy around here, please?"}
    ]
    corpus.jsonl("pairs", "bitext", rows, query="q", positive="p")["lang"] = None
    corpus.run()
    assert corpus.refused("pairs") == []


def test_positives_become_documents_once(corpus) -> None:
    rows = [{"q": "раз", "p": "общий ответ"}, {"q": "два", "p": "общий ответ"}]
    rows.append({"q": "три", "p": "документ об ином"})
    corpus.jsonl("more", "retrieval", rows, query="q", positive="p")["also_documents"] = True
    metrics = corpus.run()
    assert metrics["sources"]["more"]["documents"] == 1
    texts = [(row["source"], row["text"]) for row in corpus.table("documents")]
    assert texts == [("documents", "документ об ином"), ("more", "общий ответ")]


def test_a_smaller_sample_lies_in_a_larger_one(corpus) -> None:
    def kept(max_rows: int) -> list[str]:
        corpus.sources["questions"]["max_rows"] = max_rows
        corpus.run()
        return [row["query"] for row in corpus.table("examples")]

    small, large, everything = kept(4), kept(9), kept(100)
    assert [len(small), len(large), len(everything)] == [4, 9, 15]
    assert small == [query for query in large if query in small]
    assert large == [query for query in everything if query in large]


def test_development_queries_never_stand_in_the_examples(corpus, words: list[str]) -> None:
    """Whatever the task, and also as the positive of another row."""
    corpus.params["ingest"]["development_fraction"] = 0.5
    rows = [{"q": f"иное {word}", "p": f"вопрос {word}"} for word in words]
    corpus.jsonl("mirrored", "nli", rows, query="q", positive="p")
    same = [{"q": f"Вопрос {word}!", "p": f"по-другому {word}"} for word in words]
    corpus.jsonl("same", "retrieval", same, query="q", positive="p")
    labelled_rows = [{"q": f"вопрос {word}", "l": "аб"[n % 2]} for n, word in enumerate(words)]
    corpus.jsonl("topics", "classification", labelled_rows, query="q", label="l")
    corpus.run()
    held = {row["query"].lower().rstrip("!") for row in corpus.table("development")}
    assert held
    for row in corpus.table("examples"):
        texts = {row["query"].lower().rstrip("!"), *row["positives"]}
        assert not held & texts
        assert not held & set(row["negatives"])
    assert {row["task"] for row in corpus.table("development")} == {"nli", "retrieval"}


@pytest.mark.parametrize("task", ["classification", "clustering"])
def test_labelled_texts_are_held_out_in_company_and_rare_classes_are_not(corpus, task: str) -> None:
    corpus.params["ingest"]["development_fraction"] = 0.3
    labels = [*"аб" * 20, *"в" * 9]
    corpus.jsonl("topics", task, labelled(*labels), query="q", label="l")
    metrics = corpus.run()["sources"]["topics"]
    held_out = [row for row in corpus.table("development") if row["source"] == "topics"]
    kept = [row for row in corpus.table("examples") if row["source"] == "topics"]
    assert metrics["development"] == len(held_out)
    assert metrics["kept"] == len(kept)
    assert len(held_out) + len(kept) == len(labels)
    assert {row["label"] for row in held_out} == {"а", "б"}
    assert sum(row["label"] == "в" for row in kept) == 9
    own = {row["query"]: row["label"] for row in held_out}
    for row in held_out:
        assert own[row["positives"][0]] == row["label"], "partners are held out too"
        assert row["positives"] != [row["query"]]
        assert {own[text] for text in row["negatives"]} == {"а", "б"} - {row["label"]}


def test_one_class_alone_is_held_out_without_negatives(corpus) -> None:
    corpus.params["ingest"]["development_fraction"] = 0.3
    corpus.jsonl("topics", "classification", labelled(*"а" * 30, *"бв" * 4), query="q", label="l")
    corpus.run()
    held_out = [row for row in corpus.table("development") if row["source"] == "topics"]
    assert held_out
    assert {row["label"] for row in held_out} == {"а"}
    assert not any(row["negatives"] for row in held_out)


def test_a_row_keeps_its_side_when_the_corpus_grows(corpus) -> None:
    corpus.params["ingest"]["development_fraction"] = 0.4
    corpus.run()
    before = {row["query"] for row in corpus.table("development")}
    corpus.jsonl("more", "retrieval", pairs(*map(str, range(50))), query="q", positive="p")
    corpus.run()
    after = {row["query"] for row in corpus.table("development") if row["source"] == "questions"}
    assert before == after


def test_a_second_run_gives_the_same_bytes(corpus, files: Callable[[Path], Any]) -> None:
    corpus.params["ingest"]["development_fraction"] = 0.3
    corpus.jsonl("topics", "classification", labelled(*"абвабв"), query="q", label="l")
    corpus.run()
    first = files(corpus.root / "artifacts" / "ingest")
    corpus.run()
    assert files(corpus.root / "artifacts" / "ingest") == first


def test_the_order_of_files_in_the_folder_does_not_matter(
    corpus, files: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        rows = pairs(*(f"{number} {row}" for row in range(3)))
        corpus.jsonl(f"part{number}", "retrieval", rows, query="q", positive="p")
        del corpus.sources[f"part{number}"]
    corpus.declare("parts", "part*.jsonl", "jsonl", "retrieval", query="q", positive="p")
    corpus.run()
    first = files(corpus.root / "artifacts" / "ingest")
    listed = LocalFileSystem.ls
    monkeypatch.setattr(LocalFileSystem, "ls", lambda *a, **k: list(reversed(listed(*a, **k))))
    corpus.run()
    assert files(corpus.root / "artifacts" / "ingest") == first


def test_nothing_but_the_outputs_is_left(corpus) -> None:
    corpus.run()
    assert sorted(path.name for path in (corpus.root / "artifacts").iterdir()) == ["ingest"]
    assert sorted(path.name for path in (corpus.root / "artifacts" / "ingest").iterdir()) == [
        *("development", "documents", "evaluation", "examples", "metrics.json", "quarantine")
    ]


def test_outputs_name_no_folder_of_this_machine(corpus, files: Callable[[Path], Any]) -> None:
    lines = b'{"q"\n{"q": "abc", "p": "cde"}\n'
    corpus.raw("bad", "retrieval", "jsonl", lines, query="q", positive="p")
    corpus.run()
    for name in ("quarantine", "examples"):
        assert str(corpus.root) not in json.dumps(corpus.table(name))
    assert str(corpus.root).encode() not in files(corpus.root / "artifacts")["ingest/metrics.json"]


def test_one_class_only_is_an_error(corpus) -> None:
    corpus.jsonl("topics", "classification", labelled("а", "а"), query="q", label="l")
    with pytest.raises(StageError, match="source topics: all rows share a label"):
        corpus.run()


def test_labels_that_all_differ_are_told_from_one_class(corpus) -> None:
    rows = [{"q": f"текст {n}", "l": f"класс {n}"} for n in range(3)]
    corpus.jsonl("topics", "classification", rows, query="q", label="l")
    with pytest.raises(StageError, match="source topics: no two rows share a label"):
        corpus.run()


def test_documents_alone_give_no_examples_and_no_error(corpus) -> None:
    """Queries for them are written later, by the stage synthesize."""
    corpus.sources.pop("questions")
    corpus.params["merge"]["method"] = "uniform_soup"
    corpus.params["ingest"]["development_fraction"] = 0.1
    totals = corpus.run()["totals"]
    assert (totals["examples"], totals["development"], totals["documents"]) == (0, 0, 1)
    assert corpus.table("examples") == []
