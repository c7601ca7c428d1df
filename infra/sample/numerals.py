"""Numbers with units and years in agreement with the rules of Russian."""

import re

from infra.sample.grammar import (
    GENDER_GRAMMEMES,
    adjective_parse,
    gender_of,
    inflect,
    noun_parse,
)

_PLAIN_DIGITS = 4
"""Longer numbers get a space before the last three digits."""


def number_text(value: str) -> str:
    """A number as people print it: spaces in thousands, a word instead of the minus."""
    sign = "минус " if value.startswith("-") else ""
    digits = value.lstrip("-")
    if digits.isdigit() and len(digits) > _PLAIN_DIGITS:
        digits = f"{digits[:-3]}\u00a0{digits[-3:]}"
    return sign + digits


def count(value: str, unit: str, genitive: bool = False) -> str:
    """A number with its unit: "1 год", "2 года", "5 лет", "8,6 светового года".

    Args:
        value: Digits, with a comma in a decimal number.
        unit: Nominative singular, adjectives before the noun.
        genitive: The whole phrase stands in the genitive ("до 21 года").

    Returns:
        Number and unit.
    """
    words = unit.split(" ")
    noun = noun_parse(words[-1])
    if noun is None:
        raise ValueError(f"{unit!r} must end with a noun")
    number, case = _count_form(value, genitive)
    if number == "plur" and words[-1] == "год":
        last = "лет"
    else:
        last = inflect(noun, {number, case}, words[-1])
    gender = gender_of(noun)
    plural = not _is_one(value) and "," not in value
    few = plural and number == "sing" and gender == "f"
    adjective_case = "nomn" if few else case
    others = [_count_adjective(word, gender, plural, adjective_case) for word in words[:-1]]
    return " ".join([number_text(value), *others, last])


def _is_one(value: str) -> bool:
    return value.endswith("1") and not value.endswith("11") and "," not in value


def _count_form(value: str, genitive: bool) -> tuple[str, str]:
    if "," in value:
        return "sing", "gent"
    if _is_one(value):
        return "sing", "gent" if genitive else "nomn"
    if not genitive and re.search(r"(?<!1)[234]$", value):
        return "sing", "gent"
    return "plur", "gent"


def _count_adjective(word: str, gender: str, plural: bool, case: str) -> str:
    parse = adjective_parse(word)
    if parse is None:
        raise ValueError(f"{word!r} is not an adjective")
    if plural:
        return inflect(parse, {"plur", case}, word)
    return inflect(parse, {case} | GENDER_GRAMMEMES[gender], word)


def year(value: str, form: str) -> str:
    """A year with its word: "p" в 1812 году, "g" 1812 года, "n" год, "d" году, "i" годом."""
    word = {"p": "году", "g": "года", "n": "год", "d": "году", "i": "годом"}[form]
    era = " до н. э." if value.startswith("-") else ""
    return f"{value.lstrip('-')} {word}{era}"
