"""Turns a template and a row into a sentence.

In a template `{S:g}` is the subject in the genitive, `{mouth:a}` a value in the accusative,
`{length:+километр}` a number with its unit, `{depth:*метр}` the same in the genitive,
`{year:yp}` a year with its word, `[родился]` a word that agrees with the subject and
`[написал@author]` one that agrees with a value.
"""

import re
from functools import cache

from infra.sample.grammar import (
    CASES,
    Noun,
    agree,
    decline_phrase,
    polish,
)
from infra.sample.numerals import count, number_text, year
from infra.sample.tables import Row, load_forms, subject

_SLOT = re.compile(r"\{(\w+)(\^?)(?:@(\w))?(?::([^}]*))?\}")
_AGREE = re.compile(r"\[([^\]@]+)(?:@(\w+))?\]")
_IN = re.compile(r"([Вв]) \{S:p\}")
_PEOPLE = frozenset({"author", "discoverer", "inventor", "hero"})
_WOMEN = frozenset({"Агата", "Астрид", "Джейн", "Джоан", "Мэри", "Харпер", "Шарлотта"})


@cache
def value_noun(column: str, value: str) -> Noun:
    """A value as a noun phrase; people in plural ("братья Райт") keep their form."""
    if column in _PEOPLE:
        if value.startswith("братья ") or " и " in value:
            return Noun((value,) * 6, "p")
        return Noun((value,) * 6, "f" if value.split(" ")[0] in _WOMEN else "m")
    return _forms().get(value) or decline_phrase(value)


@cache
def _forms() -> dict[str, Noun]:
    return load_forms()


def _value(column: str, value: str, spec: str) -> str:
    if spec.startswith(("+", "*")):
        return count(value, spec[1:], genitive=spec[0] == "*")
    if spec.startswith("y"):
        return year(value, spec[1:])
    if spec and spec in CASES:
        return value_noun(column, value).case(spec)
    return number_text(value) if value.lstrip("-").isdigit() and column != "number" else value


class Renderer:
    """Fills one template for one subject and one set of values."""

    def __init__(self, row: Row, noun: Noun, values: dict[str, str]) -> None:
        self._row = row
        self._noun = noun
        self._values = values

    def fill(self, template: str) -> str:
        """The raw sentence, first letter as in the template."""
        template = _IN.sub(lambda match: self._preposition(match.group(1)), template)
        text = _AGREE.sub(self._agreeing, template)
        return _SLOT.sub(self._slot, text)

    def _preposition(self, letter: str) -> str:
        if self._noun.prep == "в":
            return f"{letter} {{S:p}}"
        return ("На" if letter == "В" else "на") + " {S:p}"

    def _agreeing(self, match: re.Match[str]) -> str:
        word, column = match.group(1), match.group(2)
        if column is None:
            return agree(word, self._noun.gender)
        return agree(word, value_noun(column, self._values[column]).gender)

    def _slot(self, match: re.Match[str]) -> str:
        column, raised, agreeing, spec = match.groups()
        if column == "S":
            return self._noun.case(spec or "n")
        if column == "kind":
            return self._row.kind.text
        value = self._values[column]
        if agreeing:
            return agree(value, self._noun.gender)
        text = _value(column, value, spec or "")
        return text[:1].upper() + text[1:] if raised else text


def render(
    template: str, row: Row, reference: str = "name", override: dict[str, str] | None = None
) -> str:
    """One finished sentence, question or title.

    Args:
        template: A line of a template file.
        row: The entity.
        reference: How the subject is called, see `tables.subject`.
        override: Values that replace the row's own (wrong on purpose).

    Returns:
        Text with its first letter raised and prepositions in the right variant.
    """
    if template.startswith("!"):
        template, reference = template[1:], "name"
    values = row.values | (override or {})
    return polish(Renderer(row, subject(row, reference), values).fill(template))
