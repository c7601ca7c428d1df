"""Lines that a model wrote after examples: each rule, with what slips past a naive one."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.synthesize.answers import AnswerRejectedError
from tasks.synthesize.drafts import Document
from tasks.synthesize.examples import Examples, read_examples
from tasks.synthesize.written import written_query

SHOWN = read_examples("encyclopaedia")
TEXT = (
    "Самовар — устройство для кипячения воды. Первые тульские самовары сделали братья Лисицыны "
    "в 1778 году: в мастерской на улице Штыковой трудились семь человек. К началу XX века в Туле "
    "работало сорок фабрик, их изделия возили на ярмарки в Нижний Новгород и Мекку."
)
DOCUMENT = Document("1", "s", "ru", "", TEXT)


def written(text: str, style: str = "question", shown: Examples = SHOWN) -> str:
    return written_query(text, style, DOCUMENT, shown, is_whole=True)


def reason(text: str, style: str = "question") -> str:
    with pytest.raises(AnswerRejectedError) as caught:
        written(text, style)
    return caught.value.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Кто делал самовары в Туле?", "Кто делал самовары в Туле?"),
        (" «Кто делал самовары в Туле?»", "Кто делал самовары в Туле?"),
        ('"Тульские самовары: начало".', "Тульские самовары: начало"),
        ("- тульские самовары ярмарка;", "тульские самовары ярмарка"),
        ("1. тульские самовары история", "тульские самовары история"),
        ("1778 год, тульский самовар", "1778 год, тульский самовар"),
        ("Где братья Лисицыны открыли мастерскую?\nОтрывок:", 0),
        ("«Тула» и «Лисицыны»: первые мастерские", "«Тула» и «Лисицыны»: первые мастерские"),
    ],
)
def test_marks_around_a_query_are_taken_off(text: str, expected: str | int) -> None:
    assert written(text) == (expected or "Где братья Лисицыны открыли мастерскую?")


@pytest.mark.parametrize("text", ["", "  ", "…", "«»", "\n", "\u200b", "?!"])
def test_nothing_is_empty(text: str) -> None:
    assert reason(text) == "query_empty"


@pytest.mark.parametrize(
    "text",
    [
        "Первые тульские самовары сделали братья Лисицыны в 1778 году",
        "ПЕРВЫЕ ТУЛЬСКИЕ САМОВАРЫ СДЕЛАЛИ БРАТЬЯ ЛИСИЦЫНЫ",
        "Когда первые тульские самовары сделали братья Лисицыны?",
        "Первые тульские «самовары» сделали: братья Лисицыны!",
        "Самовар: устройство для кипячения",
        "Первые тульские самовары в Туле сделали братья Лисицыны в 1778 году",
        "К началу XX века в Москве работало сорок фабрик, их изделия возили",
    ],
)
def test_what_is_copied_from_the_passage_says_little(text: str) -> None:
    """In another case or punctuation, with a word before it, or with one changed inside."""
    assert reason(text) == "query_copied"


@pytest.mark.parametrize(
    "text", ["братья Лисицыны 1778 год", "самовары Нижний Новгород и Мекка", "сорок фабрик в Туле"]
)
def test_words_of_the_passage_are_no_copy(text: str) -> None:
    assert written(text, "keywords") == text


@pytest.mark.parametrize(
    "text",
    [
        "Какая река вытекает из Байкала?",
        "какая река, вытекает из БАЙКАЛА",
        "И какая же река вытекает из Байкала?",
        "Почему роман Тургенева о Базарове вызвал большие споры?",
        "Сколько месяцев длится спячка ежа?",
        "Что значит: обыкновенный ёж днём спит в гнезде?",
        "Обыкновенный еж днем спит в гнезде",
        "глубина озера Байкал",
    ],
)
def test_the_examples_do_not_come_back(text: str) -> None:
    """Of any style, with a word more or less, without the dots of yo, or of a passage."""
    assert reason(text) == "query_is_an_example"


@pytest.mark.parametrize(
    ("text", "style", "expected"),
    [
        ("самовар", "keywords", "query_too_short"),
        ("тульский самовар", "keywords", "query_too_short"),
        ("Где самовар?", "question", "query_too_short"),
        ("самовар " + " ".join("абвгдежзик"), "keywords", "query_too_long"),
        ("Почему " + " ".join(f"слово{n}" for n in range(30)), "question", "query_too_long"),
        ("Где " + "ы" * 600 + " это?", "question", "query_too_long"),
        ("самовар самовар самовар самовар самовар", "keywords", "query_goes_round"),
        ("Что такое что такое что такое самовар?", "question", "query_goes_round"),
        ("Кто делал самовары? Отрывок: Волга", "question", "query_mentions_prompt"),
        ("вопрос : кто делал самовары в Туле", "question", "query_mentions_prompt"),
        ("О чём говорится в отрывке о Туле?", "question", "query_mentions_prompt"),
        ("Что сказано в данном тексте о Туле?", "question", "query_mentions_prompt"),
        ("Who made the first samovars of Russia?", "question", "query_in_another_language"),
        ("Хто зробив перші самовари у цьому місті?", "question", "query_in_another_language"),
        ("谁 制造了 图拉 的 第一个 茶炊", "keywords", "query_in_another_language"),
    ],
)
def test_what_no_one_would_search_by_is_rejected(text: str, style: str, expected: str) -> None:
    assert reason(text, style) == expected


def test_names_in_latin_letters_do_not_change_the_language() -> None:
    text = "В Azure Functions создайте TimerTrigger и выполните git rebase main."
    document = Document("1", "s", "ru", "", text)
    for query in ("Azure Functions TimerTrigger настройка", "git rebase main"):
        assert written_query(query, "keywords", document, SHOWN, is_whole=True) == query
    with pytest.raises(AnswerRejectedError, match="query_in_another_language"):
        written_query("how to set TimerTrigger", "keywords", document, SHOWN, is_whole=True)


@given(st.text(), st.sampled_from(["keywords", "question", "headline"]))
def test_any_line_is_used_or_rejected_with_a_reason(text: str, style: str) -> None:
    with contextlib.suppress(AnswerRejectedError):
        query = written(text, style)
        assert "\n" not in query
        assert written(query, style) == query
