"""Words, sentences and telling terms of Russian and other texts written with spaces."""

import math
import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"\w+(?:-\w+)*")
MIN_TERM_CHARACTERS = 4
STEM_CHARACTERS = 5
"""Words with this many first letters in common count as forms of one word."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])[»\")]?\s+(?=[«\"(—-]?\s*[A-ZА-ЯЁ0-9])|\n+")
_ABBREVIATION = re.compile(
    r"(?<!\w)([А-ЯЁA-Z]|г|гг|в|вв|н|э|т|д|п|им|ул|др|св|проф|акад|тыс|рис|стр)\.$"
)


def words_of(text: str) -> list[str]:
    """Words in lower case, digits and parts with a hyphen included."""
    return [word.casefold() for word in WORD.findall(text)]


def sentences_of(text: str) -> list[str]:
    """Sentences; an initial or a short abbreviation before a full stop ends none."""
    sentences: list[str] = []
    for piece in _SENTENCE_END.split(text):
        if sentences and _ABBREVIATION.search(sentences[-1]):
            sentences[-1] = f"{sentences[-1]} {piece}"
        elif piece.strip():
            sentences.append(piece.strip())
    return sentences


class TermWeights:
    """TF-IDF over a set of texts: tf times ln(texts / texts with the term)."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Count in how many of `texts` each word stands."""
        self._frequency: Counter[str] = Counter()
        self._num_texts = 0
        for text in texts:
            self._frequency.update(set(words_of(text)))
            self._num_texts += 1

    def of(self, text: str) -> dict[str, float]:
        """Weight of each word of one of the texts, in order of appearance."""
        counts = Counter(words_of(text))
        return {
            word: count * math.log(self._num_texts / self._frequency[word])
            for word, count in counts.items()
        }


def telling_terms(weights: dict[str, float], count: int) -> list[str]:
    """The heaviest terms, in the order of `weights`; of the forms of one word only the heaviest."""
    chosen: dict[str, str] = {}
    for word, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
        if is_term(word) and weight > 0 and len(chosen) < count:
            chosen.setdefault(word[:STEM_CHARACTERS], word)
    return [word for word in weights if word in chosen.values()]


def is_term(word: str) -> bool:
    """Whether a word can stand for a topic: letters only, and not too few."""
    return len(word) >= MIN_TERM_CHARACTERS and word.replace("-", "").isalpha()
