"""Queries without a language model: what they are made of, and that they come out the same."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from tasks.contract.records import (
    DOCUMENT_SCHEMA,
    EVALUATION_SCHEMA,
    EXAMPLE_SCHEMA,
    match_key,
    read_table,
    text_id,
    write_table,
)
from tasks.contract.stage import StageError
from tasks.params.load import Params, load_params
from tasks.synthesize.__main__ import synthesize
from tasks.synthesize.drafts import Document
from tasks.synthesize.offline import cloze, interrogative, write_offline
from tasks.synthesize.terms import WORD, TermWeights, sentences_of, telling_terms

ROOT = Path(__file__).parents[2]
LAKES = ["Байкал", "Ханка", "Ильмень", "Эльтон", "Баскунчак", "Таймыр"]
TOWNS = ["Ангарск", "Борзя", "Елец", "Канск", "Невель", "Орск", "Рузаевка"]


def lake(number: int, **changed: str) -> Document:
    name = LAKES[number % len(LAKES)]
    values = {
        "id": text_id("documents", str(number)),
        "source": "documents",
        "lang": "ru",
        "title": f"{name}: справка {number}",
        "text": f"Озеро {name} лежит среди гор Сибири. "
        f"Глубина озера {name} составляет {number + 100} метров. "
        f"Рядом с озером стоит город {TOWNS[number % len(TOWNS)]}. "
        f"Зимой {name} замерзает, и по льду проходит дорога {number}.",
    }
    return Document(**(values | changed))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [lake(number) for number in range(40)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Волга впадает в море. Она длинная!", ["Волга впадает в море.", "Она длинная!"]),
        ("А. С. Пушкин родился в Москве. Умер он в 1837 г. в Петербурге.", 2),
        ("Написано в 1833 г. Издано позже.", 1),
        ("Длина 36 км. Ширина 5 км.", 2),
        ("Кто там? «Я», — сказал он… И ушёл.", 3),
        ("Заголовок\nТекст без точки", 2),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_sees_it(text: str, expected: list[str] | int) -> None:
    found = sentences_of(text)
    assert found == expected if isinstance(expected, list) else len(found) == expected


def test_term_weights_equal_those_of_scikit_learn() -> None:
    """Its idf has 1 added, so its weight is ours plus the count of the term."""
    texts = [lake(number).text for number in range(10)]
    reference = TfidfVectorizer(token_pattern=WORD.pattern, smooth_idf=False, norm=None)
    matrix = reference.fit_transform(texts).toarray()
    weights = TermWeights(texts)
    for row, text in enumerate(texts):
        for word, weight in weights.of(text).items():
            column = reference.vocabulary_[word]
            count = [found.casefold() for found in WORD.findall(text)].count(word)
            assert weight == pytest.approx(matrix[row, column] - count)


def test_telling_terms_are_the_heaviest_without_forms_of_one_word() -> None:
    weights = {"гора": 1.0, "байкала": 4.0, "глубины": 3.0, "байкале": 5.0, "что": 9.0, "1990": 9.0}
    assert telling_terms(weights, 2) == ["глубины", "байкале"]


@pytest.mark.parametrize(
    ("noun", "before", "pronoun"),
    [
        ("озеро", None, "что"),
        ("столицей", None, "чем"),
        ("писатель", None, "кто"),
        ("городу", "к", "чему"),
        ("горы", "высокие", None),
        ("кот", "рыжий", None),
        ("бежит", None, None),
    ],
)
def test_a_noun_is_asked_for_in_its_case(
    noun: str, before: str | None, pronoun: str | None
) -> None:
    assert interrogative(noun, before) == pronoun


def test_a_sentence_becomes_a_question() -> None:
    question = cloze("Самой длинной рекой Европы считают Волгу.", "волгу", "ru")
    assert question == "Самой длинной рекой Европы считают что?"


def test_a_word_in_quotes_or_inside_another_is_not_asked_for() -> None:
    assert cloze("Роман «Война и мир» написал Толстой.", "война", "ru") is None
    assert cloze("Перевойна была долгой.", "война", "ru") is None


def test_another_language_gets_a_gap() -> None:
    assert cloze("The Volga is long.", "volga", "en") == "The … is long?"


def test_every_kind_takes_its_turn(documents: list[Document]) -> None:
    drafts = write_offline(documents, 1, seed=1)
    kinds = {draft.kind for draft in drafts.kept}
    assert kinds == {"title", "cloze", "keywords", "first_sentence"}


def test_queries_of_a_document_share_one_positive(documents: list[Document]) -> None:
    """Otherwise training would take one for a wrong answer to the other."""
    drafts = write_offline(documents, 4, seed=1)
    assert len(drafts.kept) == 4 * len(documents)
    assert len({draft.positive for draft in drafts.kept}) == len(documents)


def test_a_title_is_not_in_the_positive_of_its_query(documents: list[Document]) -> None:
    for draft in write_offline(documents, 2, seed=1).kept:
        if draft.kind == "title":
            assert draft.query not in draft.positive


def test_keywords_stand_in_the_document(documents: list[Document]) -> None:
    drafts = write_offline(documents, 4, seed=1)
    keywords = [draft for draft in drafts.kept if draft.kind == "keywords"]
    assert len(keywords) == len(documents)
    for draft in keywords:
        assert set(draft.query.split()) <= set(draft.positive.casefold().replace(".", "").split())


def test_a_document_that_gives_nothing_is_counted() -> None:
    drafts = write_offline([lake(1, title="", text="Да.")], 4, seed=1)
    assert drafts.kept == []
    assert drafts.rejected == {"document_gives_none": 1}


# The stage as a whole.


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "infra/profiles/pico.yaml")


def with_section(params: Params, **changed: Any) -> Params:
    section = params.synthesize.model_copy(update=changed)
    return params.model_copy(update={"synthesize": section})


def ingest(
    documents: list[Document], *, evaluation: str = "Проверка", development: str = "Вопрос"
) -> None:
    folder = Path("artifacts/ingest")
    rows = [vars(document) for document in documents]
    write_table(pa.Table.from_pylist(rows, DOCUMENT_SCHEMA), folder / "documents")
    texts = [{"task": "STS", "text": evaluation}]
    write_table(pa.Table.from_pylist(texts, EVALUATION_SCHEMA), folder / "evaluation")
    held_out = {"id": "1", "task": "retrieval", "source": "titles", "lang": "ru", "query": "Вопрос"}
    held_out |= {"positives": [development], "negatives": []}
    write_table(pa.Table.from_pylist([held_out], EXAMPLE_SCHEMA), folder / "development")


def metrics() -> dict[str, Any]:
    return json.loads(Path("artifacts/synthesize/metrics.json").read_text())


def examples() -> list[dict[str, Any]]:
    return read_table(Path("artifacts/synthesize/examples")).to_pylist()


def test_the_stage_writes_examples_and_names_the_generator(
    workplace: Path, params: Params, documents: list[Document]
) -> None:
    ingest(documents)
    synthesize(with_section(params, queries_per_document=2))
    rows = examples()
    assert metrics()["generator"] == "offline"
    assert metrics()["examples"] == len(rows) == sum(metrics()["kinds"].values())
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({match_key(row["query"]) for row in rows}) == len(rows)
    assert {row["task"] for row in rows} == {"retrieval"}


def test_equal_inputs_give_equal_bytes_whatever_their_order(
    workplace: Path, params: Params, documents: list[Document]
) -> None:
    written = []
    for order in (documents, documents[::-1]):
        folder = workplace / str(len(written))
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            ingest(order)
            synthesize(with_section(params, max_documents=10))
            files = sorted(Path("artifacts/synthesize").rglob("*.*"))
            written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]


def test_more_documents_begin_with_the_same(
    workplace: Path, params: Params, documents: list[Document]
) -> None:
    ingest(documents)
    positives = []
    for count in (5, 10):
        synthesize(with_section(params, max_documents=count, queries_per_document=4))
        positives.append(list(dict.fromkeys(row["positives"][0] for row in examples())))
    assert positives[1][:5] == positives[0]


def test_no_documents_wanted_gives_an_empty_table(
    workplace: Path, params: Params, documents: list[Document]
) -> None:
    ingest(documents)
    synthesize(with_section(params, max_documents=0))
    assert examples() == []
    assert metrics()["examples"] == 0


def test_a_query_that_an_evaluation_holds_is_no_example(
    workplace: Path, params: Params, documents: list[Document]
) -> None:
    ingest(documents, evaluation="озеро, Ханка, лежит среди гор Сибири!")
    synthesize(with_section(params, queries_per_document=4))
    assert metrics()["rejected"]["evaluation_text"] >= 1
    assert not any(row["query"].startswith("Озеро Ханка лежит") for row in examples())


@pytest.mark.parametrize("positive", [lake(3).text, lake(3).whole])
def test_a_document_of_the_development_split_gets_no_query(
    workplace: Path, params: Params, documents: list[Document], positive: str
) -> None:
    ingest(documents, development=positive)
    synthesize(with_section(params, queries_per_document=4))
    assert metrics()["skipped_documents"] == {"development_text": 1}
    assert not any(lake(3).text in row["positives"][0] for row in examples())


def test_a_query_of_two_documents_stays_with_the_first(workplace: Path, params: Params) -> None:
    """In a batch each would be a wrong answer to the other."""
    ingest([lake(1), lake(7, title=lake(1).title)])
    synthesize(with_section(params, queries_per_document=4))
    queries = [match_key(row["query"]) for row in examples()]
    assert len(set(queries)) == len(queries)
    assert metrics()["rejected"]["query_repeated"] >= 1


def test_documents_without_any_usable_query_are_an_error(workplace: Path, params: Params) -> None:
    ingest([lake(1, title="", text="Да.")])
    with pytest.raises(StageError, match=r"none of 1 documents .*'document_gives_none': 1"):
        synthesize(params)
    assert not Path("artifacts/synthesize").exists()
