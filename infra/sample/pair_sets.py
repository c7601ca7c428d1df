"""Sentence pairs: graded paraphrases and entailment with contradiction."""

import functools
import random
from collections.abc import Callable

from infra.sample.compose import Composer, Fact, all_facts
from infra.sample.tables import Table

_STEM_LETTERS = 5
_SHORTEST_WORD = 4
_HALF = 0.5

PairRecord = dict[str, str | float]


@functools.cache
def stems(text: str) -> frozenset[str]:
    """Beginnings of the longer words of a text: a rough measure of shared vocabulary."""
    words = text.lower().replace("?", " ").split()
    return frozenset(word[:_STEM_LETTERS] for word in words if len(word) >= _SHORTEST_WORD)


def common_stems(first: str, second: str) -> int:
    """How many word beginnings two texts share."""
    return len(stems(first) & stems(second))


@functools.cache
def may_agree(first: str, second: str) -> bool:
    """Whether one value is the other in fewer words: "Африка" does not deny "Восточная Африка"."""
    ours, theirs = set(first.lower().split()), set(second.lower().split())
    return ours <= theirs or theirs <= ours


class PairWriter:
    """Writes sentence pairs; the same code serves training and the benchmark."""

    def __init__(
        self, tables: tuple[Table, ...], pool: tuple[Table, ...], composer: Composer
    ) -> None:
        """Prepare the pairs.

        Args:
            tables: Entities to write about.
            pool: Tables that supply wrong values.
            composer: Chooses the wordings.
        """
        self._composer = composer
        self._rng: random.Random = composer.rng
        self.facts = all_facts(tables)
        self._by_row: dict[tuple[str, str], list[Fact]] = {}
        self._by_column: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            self._by_row.setdefault(fact.key[:2], []).append(fact)
            self._by_column.setdefault((fact.key[0], fact.key[2]), []).append(fact)
        self._makers: tuple[Callable[[Fact], tuple[str, str] | None], ...] = (
            self._other_domain,
            self._same_domain,
            self._same_relation,
            self._same_entity,
            self._wider,
            self.two_wordings,
        )
        self._values: dict[tuple[str, str], list[str]] = {}
        for fact in all_facts(pool):
            self._values.setdefault((fact.key[0], fact.key[2]), []).append(fact.value)

    def wrong_value(self, fact: Fact) -> str | None:
        """A value of the same relation that denies the fact's own, or None if there is none."""
        known = set(self._values[fact.key[0], fact.key[2]])
        values = sorted(value for value in known if not may_agree(value, fact.value))
        return self._rng.choice(values) if values else None

    def two_wordings(self, fact: Fact) -> tuple[str, str]:
        """The same fact in two different templates; of two draws the one with less in common."""
        draws: list[tuple[str, str]] = []
        for _ in range(2):
            first, second = self._rng.sample(self._composer.statements(fact), 2)
            draws.append((self._composer.say(fact, first), self._composer.say(fact, second)))
        return min(draws, key=lambda pair: (common_stems(*pair), pair))

    def _same_wording(self, fact: Fact) -> str | None:
        """A template for both sentences of a pair, in half of the cases."""
        statements = self._composer.statements(fact)
        return self._rng.choice(statements) if self._rng.random() < _HALF else None

    def graded(self, score: int) -> tuple[str, str] | None:
        """A pair with the given similarity.

        Args:
            score: 5 the same fact, 4 the fact and something more, 3 the same entity with
                another value or relation, 2 the same relation of another entity, 1 the same
                domain, 0 another domain.

        Returns:
            Two sentences, or None if the drawn fact allows no such pair.
        """
        fact = self._rng.choice(self.facts)
        return self._makers[score](fact)

    def _same_relation(self, fact: Fact) -> tuple[str, str] | None:
        near = self._by_column[fact.key[0], fact.key[2]]
        template = self._same_wording(fact)
        return self._with_other(fact, [f for f in near if f.value != fact.value], template)

    def _same_domain(self, fact: Fact) -> tuple[str, str] | None:
        ours = (f for f in self.facts if f.table.domain == fact.table.domain)
        differing = (f for f in ours if f.relation.column != fact.relation.column)
        return self._with_other(fact, [f for f in differing if f.row.key != fact.row.key], None)

    def _other_domain(self, fact: Fact) -> tuple[str, str] | None:
        others = [f for f in self.facts if f.table.domain != fact.table.domain]
        return self._with_other(fact, others, None)

    def _with_other(
        self, fact: Fact, pool: list[Fact], template: str | None
    ) -> tuple[str, str] | None:
        if not pool:
            return None
        other = self._rng.choice(pool)
        return self._composer.say(fact, template), self._composer.say(other, template)

    def _wider(self, fact: Fact) -> tuple[str, str] | None:
        others = [f for f in self._by_row[fact.key[:2]] if f is not fact]
        if not others:
            return None
        first, second = self.two_wordings(fact)
        more = self._composer.say(self._rng.choice(others), reference="this")
        return first, f"{second} {more}"

    def _same_entity(self, fact: Fact) -> tuple[str, str] | None:
        others = [f for f in self._by_row[fact.key[:2]] if f is not fact]
        if others and self._rng.random() < _HALF:
            return self._composer.say(fact), self._composer.say(self._rng.choice(others))
        wrong = self.wrong_value(fact)
        if wrong is None or not fact.relation.exclusive:
            return None
        template = self._same_wording(fact)
        return self._composer.say(fact, template), self._composer.say(fact, template, value=wrong)

    def paraphrases(self, per_score: int) -> list[PairRecord]:
        """`per_score` pairs of every score from 5 to 0."""
        records: list[PairRecord] = []
        for score in range(5, -1, -1):
            done = 0
            while done < per_score:
                pair = self.graded(score)
                if pair is None or pair[0] == pair[1]:
                    continue
                records.append({"sentence1": pair[0], "sentence2": pair[1], "score": float(score)})
                done += 1
        return records

    def nli(self, limit: int) -> list[dict[str, str]]:
        """Premise, the same fact in other words, and the same entity with a wrong value."""
        records: list[dict[str, str]] = []
        while len(records) < limit:
            fact = self._rng.choice(self.facts)
            wrong = self.wrong_value(fact) if fact.relation.exclusive else None
            if wrong is None:
                continue
            premise, entailment = self.two_wordings(fact)
            contradiction = self._composer.say(fact, value=wrong)
            records.append(
                {"premise": premise, "entailment": entailment, "contradiction": contradiction}
            )
        return records
