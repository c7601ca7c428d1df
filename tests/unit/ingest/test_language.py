"""Which language a text is taken for."""

import pytest

from tasks.contract.stage import StageError
from tasks.ingest.language import LanguageDetector


@pytest.fixture(scope="module")
def russian() -> LanguageDetector:
    return LanguageDetector(["ru"])


@pytest.mark.parametrize(
    "text",
    [
        "Столица России — Москва.",
        "Разбуди меня в 5:30.",
        "Проверка запуска отчета",
        "план на завтра",
        "все равно читал кто?",
        "Отладка расширения DAC",
        "2 + 2",
    ],
)
def test_short_russian_texts_are_russian(russian: LanguageDetector, text: str) -> None:
    assert russian.detect(text) == "ru"


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("Where is the nearest pharmacy?", "en"),
        ("Berlin ist die Hauptstadt Deutschlands", "de"),
        ("Київ є столицею України та найбільшим містом країни", "uk"),
        ("Столицата на България е град София", "bg"),
        ("Мінск з’яўляецца сталіцай Беларусі", "be"),
        ("Астана — Қазақстанның елордасы", "kk"),
    ],
)
def test_texts_in_other_languages_are_told(russian: LanguageDetector, text: str, lang: str) -> None:
    assert russian.detect(text) == lang


def test_of_two_wanted_languages_the_likelier_is_told() -> None:
    detector = LanguageDetector(["en-GB", "ru-RU"])
    assert detector.detect("Столица России — Москва.") == "ru-RU"
    assert detector.detect("The capital of Russia is Moscow.") == "en-GB"


def test_a_language_that_cannot_be_told_is_named() -> None:
    with pytest.raises(StageError, match=r"\['klingon'\] cannot be identified"):
        LanguageDetector(["ru", "klingon"])
