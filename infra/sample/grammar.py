"""Russian inflection: declension of names and phrases, agreement, choice of prepositions.

Common words are declined by pymorphy3; names of people by the school rules for surnames,
because the dictionary guesses foreign surnames badly.
"""

import functools
import re
from dataclasses import dataclass

import pymorphy3
from pymorphy3.analyzer import Parse

CASES = "ngdaip"
"""Nominative, genitive, dative, accusative, instrumental, prepositional."""

_GRAMMEMES = dict(zip(CASES, ("nomn", "gent", "datv", "accs", "ablt", "loct"), strict=True))
_GENDERS = {"masc": "m", "femn": "f", "neut": "n"}
GENDER_GRAMMEMES = {
    "m": {"masc", "sing"},
    "f": {"femn", "sing"},
    "n": {"neut", "sing"},
    "p": {"plur"},
}
_PARTICLES = frozenset({"де", "ван", "ди", "дель", "сент"})
_FOREIGN_IN = frozenset({"дарвин", "франклин", "толкин"})
_SURNAME_ENDINGS: tuple[tuple[str, str], ...] = (
    ("ий", "ого ому ого им ом"),
    ("ый", "ого ому ого ым ом"),
    ("ой", "ого ому ого ым ом"),
    ("й", "я ю я ем е"),
    ("ь", "я ю я ем е"),
    ("ка", "ки ке ку кой ке"),
    ("га", "ги ге гу гой ге"),
    ("ха", "хи хе ху хой хе"),
    ("ия", "ии ии ию ией ии"),
    ("а", "ы е у ой е"),
    ("я", "и е ю ей е"),
)


@dataclass(frozen=True)
class Noun:
    """A name or phrase in all six cases, with what its verb needs."""

    forms: tuple[str, ...]
    gender: str
    prep: str = "в"

    def case(self, case: str) -> str:
        """The phrase in a case given by its letter of `CASES`."""
        return self.forms[CASES.index(case)]

    @property
    def text(self) -> str:
        """The nominative."""
        return self.forms[0]


@functools.cache
def _analyzer() -> pymorphy3.MorphAnalyzer:
    return pymorphy3.MorphAnalyzer(lang="ru")


@functools.cache
def _parses(word: str) -> list[Parse]:
    return _analyzer().parse(word)


def _like(word: str, pattern: str) -> str:
    """Give `word` the capital letters of `pattern`."""
    if "-" in pattern and "-" in word:
        pairs = zip(word.split("-"), pattern.split("-"), strict=False)
        return "-".join(_like(part, like) for part, like in pairs)
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word


def noun_parse(word: str) -> Parse | None:
    """The first reading of a word as a noun in the nominative."""
    for parse in _parses(word):
        if parse.tag.POS == "NOUN" and parse.tag.case == "nomn" and parse.normal_form:
            return parse
    return None


def adjective_parse(word: str) -> Parse | None:
    """The first reading of a word as an adjective or participle in the nominative."""
    for parse in _parses(word):
        if parse.normal_form == "больший":
            continue
        if parse.tag.POS in {"ADJF", "PRTF"} and parse.tag.case == "nomn":
            return parse
    return None


def inflect(parse: Parse, grammemes: set[str], original: str) -> str:
    """A form of a word with the capital letters of the original."""
    done = parse.inflect(grammemes)
    return _like(done.word, original) if done else original


def gender_of(parse: Parse) -> str:
    """Gender letter "m", "f", "n", or "p" for the plural."""
    if parse.tag.number == "plur":
        return "p"
    return _GENDERS.get(str(parse.tag.gender), "m")


def _source_case(case: str, gender: str, animate: bool) -> str:
    """The accusative of masculine and plural phrases repeats another case."""
    if case != "a" or gender == "f":
        return case
    return "g" if animate and gender in "mp" else "n"


def decline_phrase(phrase: str, animate: bool = False) -> Noun:
    """Decline adjectives and the first noun of a phrase; what follows the noun stays.

    Args:
        phrase: Nominative, e.g. "Каспийское море" or "битва при Ватерлоо".
        animate: The accusative of a masculine phrase repeats the genitive.

    Returns:
        The phrase in six cases.

    Raises:
        ValueError: The phrase has no noun in the nominative.
    """
    words = phrase.split(" ")
    for index, word in enumerate(words):
        if adjective_parse(word) and index + 1 < len(words):
            continue
        parse = noun_parse(word) or adjective_parse(word)
        if parse is None:
            break
        return _decline(words, index, parse, animate)
    raise ValueError(f"no noun in {phrase!r}; add the name to forms.tsv")


def _decline(words: list[str], head: int, parse: Parse, animate: bool) -> Noun:
    gender = gender_of(parse)
    forms: list[str] = []
    for case in CASES:
        source = _source_case(case, gender, animate)
        grammemes = {_GRAMMEMES[source]} | GENDER_GRAMMEMES[gender]
        done: list[str] = []
        for word in words[:head]:
            adjective = adjective_parse(word)
            done.append(inflect(adjective, grammemes, word) if adjective else word)
        number = {"plur"} if gender == "p" else {"sing"}
        done.append(inflect(parse, {_GRAMMEMES[source]} | number, words[head]))
        forms.append(" ".join(done + words[head + 1 :]))
    return Noun((" ".join(words), *forms[1:]), gender)


def _surname_forms(word: str, gender: str) -> list[str]:
    if "-" in word:
        parts = [_surname_forms(part, gender) for part in word.split("-")]
        return ["-".join(pair) for pair in zip(*parts, strict=True)]
    low = word.lower()
    if low in _PARTICLES or low[-1] in "оеиуюэё":
        return [word] * 6
    if gender == "f":
        return _feminine_forms(word)
    if low.endswith(("ов", "ев", "ёв", "ин", "ын")) and low not in _FOREIGN_IN:
        return [word, *(word + end for end in ("а", "у", "а", "ым", "е"))]
    for ending, others in _SURNAME_ENDINGS:
        if low.endswith(ending):
            return [word, *(word[: -len(ending)] + end for end in others.split())]
    instrumental = "ем" if low[-1] in "жшчщц" else "ом"
    return [word, *(word + end for end in ("а", "у", "а", instrumental, "е"))]


def _feminine_forms(word: str) -> list[str]:
    if word.endswith(("ова", "ева", "ина", "ая")):
        stem, accusative = (word[:-2], "ую") if word.endswith("ая") else (word[:-1], "у")
        return [word, *(stem + end for end in ("ой", "ой", accusative, "ой", "ой"))]
    return [word] * 6


def decline_person(name: str, gender: str) -> Noun:
    """Decline first names by the dictionary and surnames by rule.

    Args:
        name: Full name in the nominative.
        gender: "m" or "f".

    Returns:
        The name in six cases.
    """
    parts = [_person_word(word, index, gender) for index, word in enumerate(name.split(" "))]
    return Noun(tuple(" ".join(part[i] for part in parts) for i in range(6)), gender)


def _person_word(word: str, index: int, gender: str) -> list[str]:
    wanted = "masc" if gender == "m" else "femn"
    for parse in _parses(word):
        tag = parse.tag
        if tag.case != "nomn" or tag.number != "sing" or tag.gender != wanted:
            continue
        is_first_name = index == 0 and "Name" in tag
        if is_first_name or "Patr" in tag or tag.POS == "ADJF":
            found = {case: parse.inflect({_GRAMMEMES[case], "sing"}) for case in CASES}
            found["a"] = parse.inflect({_GRAMMEMES["g" if gender == "m" else "a"], "sing"})
            forms = [found[case] for case in CASES]
            return [_like(form.word if form else word, word) for form in forms]
    return _surname_forms(word, gender)


@functools.cache
def agree(word: str, gender: str) -> str:
    """Put a verb, participle or adjective (masculine or third person) into agreement.

    Args:
        word: "родился", "открыт", "находится", "такой".
        gender: "m", "f", "n" or "p".

    Returns:
        The agreeing form, e.g. "родилась" for "f".
    """
    if gender == "m":
        return word
    for parse in _parses(word):
        tag = parse.tag
        if tag.POS in {"VERB", "PRTS", "ADJS", "ADJF"} and tag.number == "sing":
            past_or_short = tag.POS != "VERB" or tag.tense == "past"
            if past_or_short and tag.gender != "masc":
                continue
            grammemes = (
                GENDER_GRAMMEMES[gender]
                if past_or_short
                else GENDER_GRAMMEMES[gender] & {"sing", "plur"}
            )
            done = parse.inflect(grammemes)
            if done:
                return done.word
    raise ValueError(f"cannot make {word!r} agree; use another word in the template")


_FIXES = (
    (re.compile(r"\b([Вв]) (?=«?(?:[ВвФф][бвгджзклмнпрстфхцчшщь]|[Лл]ьв))"), r"\1о "),
    (re.compile(r"\b([Сс]) (?=«?(?:[СсЗзШшЖж][бвгджзклмнпрстфхцчшщ]|[Лл]ьв))"), r"\1о "),
    (re.compile(r"\b([Оо]) (?=«?[аоуэиАОУЭИ])"), r"\1б "),
    (re.compile(r"(н\. э\.)\."), r"\1"),
)


def polish(sentence: str) -> str:
    """Choose в/во, с/со, о/об and raise the first letter."""
    for pattern, replacement in _FIXES:
        sentence = pattern.sub(replacement, sentence)
    return sentence[:1].upper() + sentence[1:]
