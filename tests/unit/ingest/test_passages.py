"""Documents cut into pairs of passages, and sources that are left out of every training."""

import pytest

from tasks.ingest.passages import PASSAGE_CHARACTERS, SENTENCE_CHARACTERS, passages_of
from tasks.params.load import ParamsError

SENTENCES = [f"Предложение номер {n} говорит о чём-то своём." for n in range(60)]


def test_a_pair_is_a_sentence_and_what_follows_it() -> None:
    pairs = passages_of("novels", [(" ".join(SENTENCES), "ru")], 100)
    assert len(pairs) == 6
    last = next(pair for pair in pairs if SENTENCES[-1] in pair.positive)
    for pair in pairs:
        number = SENTENCES.index(pair.query)
        assert pair.positive.startswith(SENTENCES[number + 1])
        assert pair.positive in " ".join(SENTENCES)
        # the last one has the rest of the document
        assert pair is last or len(pair.positive) >= PASSAGE_CHARACTERS
        assert len(pair.positive) <= 2 * PASSAGE_CHARACTERS
        assert pair.lang == "ru"
    told = [sentence for pair in pairs for sentence in (pair.query, *pair.positive.split(". "))]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("text", ["", "Одно предложение, и больше ничего.", "Да. Нет. Да.", "\n\n"])
def test_a_text_without_two_passages_gives_none(text: str) -> None:
    assert passages_of("novels", [(text, "ru")], 10) == []


def test_without_an_end_of_a_sentence_a_text_is_no_sentence() -> None:
    long = "слово " * 500
    assert (
        passages_of("novels", [(f"{long}\nКороткое предложение здесь.\n{long}", "ru")], 9)[
            0
        ].positive
        == long.strip()[: 2 * PASSAGE_CHARACTERS].strip()
    )
    assert max(SENTENCE_CHARACTERS) < len(long)


def test_the_pairs_are_those_with_the_smallest_ids_of_all_documents() -> None:
    documents = [(" ".join(SENTENCES[n:] + SENTENCES[:n]), "ru") for n in range(0, 60, 7)]
    every = passages_of("novels", documents, 10_000)
    assert passages_of("novels", documents[::-1] + documents, 12) == every[:12]


def test_passages_are_examples_that_nobody_judged(corpus) -> None:
    corpus.jsonl("novels", "documents", [{"text": " ".join(SENTENCES)}], text="text")[
        "passages"
    ] = 3
    metrics = corpus.run()["sources"]["novels"]
    rows = [row for row in corpus.table("examples") if row["source"] == "novels"]
    assert metrics["passages"] == len(rows) == 3
    assert {row["task"] for row in rows} == {"passages"}
    assert all(row["negatives"] == [] and row["label"] is None for row in rows)


def test_a_passage_of_the_development_split_is_no_example(corpus) -> None:
    corpus.jsonl("novels", "documents", [{"text": " ".join(SENTENCES)}], text="text")[
        "passages"
    ] = 9
    corpus.run()
    [first, *_] = [row for row in corpus.table("examples") if row["source"] == "novels"]
    leaked = {"q": first["query"].upper(), "p": "Ответ, которого нигде больше нет."}
    corpus.jsonl("held", "retrieval", [leaked], query="q", positive="p")["left_out"] = True
    corpus.run()
    queries = [row["query"] for row in corpus.table("examples") if row["source"] == "novels"]
    assert len(queries) == 5
    assert first["query"] not in queries


def test_no_row_of_a_source_left_out_is_trained_on(corpus) -> None:
    rows = [{"q": f"вопрос о числе {n}", "p": f"ответ про число {n}"} for n in range(30)]
    corpus.jsonl("held", "retrieval", rows, query="q", positive="p")["left_out"] = True
    # a text of the other side leaks as well: a document that training knows is easier to find
    corpus.jsonl(
        "twin", "nli", [{"q": "Ответ про число 7!", "p": "да"}, {"q": "кот", "p": "пёс"}],
        query="q", positive="p",
    )  # fmt: skip
    metrics = corpus.run()["sources"]
    assert metrics["held"]["kept"] == 0
    assert metrics["held"]["development"] == 30
    assert metrics["twin"]["quarantined"] == {"development_overlap": 1}
    assert "held" not in {row["source"] for row in corpus.table("examples")}
    assert sum(row["source"] == "held" for row in corpus.table("development")) == 30


@pytest.mark.parametrize(
    ("task", "column", "said"),
    [("documents", "left_out", "not for task documents"), ("nli", "passages", "the task is nli")],
)
def test_what_cannot_be_left_out_or_cut_is_refused(corpus, task, column, said) -> None:
    fields = {"text": "q"} if task == "documents" else {"query": "q", "positive": "p"}
    corpus.jsonl("odd", task, [{"q": "кот", "p": "пёс"}], **fields)[column] = 1
    with pytest.raises(ParamsError, match=said):
        corpus.run()
