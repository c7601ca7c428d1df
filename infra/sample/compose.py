"""Composes sentences, passages and documents from facts, with a seeded choice of wording."""

import random
from dataclasses import dataclass

from infra.sample.grammar import polish
from infra.sample.render import render
from infra.sample.tables import Relation, Row, Table

LINKS = ("Кроме того, ", "Известно также, что ", "К тому же ", "Интересно, что ")
COMPARISONS = ("Для сравнения: ", "Другой пример: ", "Напомним и другое: ")


_THIS_SHARE = 0.75
_LINK_SHARE = 0.3
_FEWEST_TO_HOLD_OUT = 4
_STATEMENT_SHARE = 0.5


def seeded(*parts: str | int) -> random.Random:
    """A random generator that depends on the given parts alone."""
    return random.Random("-".join(str(part) for part in parts))  # noqa: S311 - wording, not secrets


@dataclass(frozen=True)
class Fact:
    """One relation of one entity."""

    table: Table
    row: Row
    relation: Relation

    @property
    def value(self) -> str:
        """The value as it stands in the table."""
        return self.row.values[self.relation.column]

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity of the fact."""
        return self.table.name, self.row.key, self.relation.column


def facts_of(table: Table, row: Row) -> list[Fact]:
    """Facts of one entity, in the order of the template file."""
    return [Fact(table, row, rel) for rel in table.relations if rel.column in row.values]


def all_facts(tables: tuple[Table, ...]) -> list[Fact]:
    """Every fact of the tables, in a stable order."""
    return [fact for table in tables for row in table.rows for fact in facts_of(table, row)]


class Composer:
    """Chooses wordings with one random generator.

    The last statement and the last question of a relation are held out: only a composer made
    with `held_out=True` uses them, so that the benchmark has wordings training never saw.
    """

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self._held_out = held_out

    def chance(self, share: float) -> bool:
        """True in the given share of the draws."""
        return self.rng.random() < share

    def reference(self, fact: Fact) -> str:
        """The name, or in a third of the draws the name with its kind ("река Волга")."""
        return "name" if fact.relation.named else self.rng.choice(("name", "name", "kind"))

    def _usable(self, templates: tuple[str, ...]) -> tuple[str, ...]:
        return (
            templates if self._held_out or len(templates) < _FEWEST_TO_HOLD_OUT else templates[:-1]
        )

    def statements(self, fact: Fact) -> tuple[str, ...]:
        """Statement templates this composer may use."""
        return self._usable(fact.relation.statements)

    def questions(self, fact: Fact) -> tuple[str, ...]:
        """Question templates this composer may use."""
        return self._usable(fact.relation.questions)

    def say(
        self,
        fact: Fact,
        template: str | None = None,
        reference: str | None = None,
        value: str | None = None,
    ) -> str:
        """A statement of the fact.

        Args:
            fact: What to say.
            template: A template; by default a random statement.
            reference: How the subject is called; by default its name, sometimes with its kind.
            value: A wrong value instead of the true one.

        Returns:
            One sentence.
        """
        template = template or self.rng.choice(self.statements(fact))
        reference = reference or self.reference(fact)
        if reference == "this" and fact.relation.named:
            reference = "name"
        override = {fact.relation.column: value} if value is not None else None
        return render(template, fact.row, reference, override)

    def ask(self, fact: Fact) -> str:
        """A random question about the fact, the entity named."""
        return render(self.rng.choice(self.questions(fact)), fact.row, self.reference(fact))

    def short_text(self, fact: Fact) -> str:
        """A statement, a question or a headline about the fact."""
        if self.chance(_STATEMENT_SHARE):
            return self.say(fact)
        return self.ask(fact) if self.chance(_STATEMENT_SHARE) else self.title(fact)

    def title(self, fact: Fact) -> str:
        """A random headline about the fact."""
        return render(self.rng.choice(fact.relation.titles), fact.row)

    def passage(self, facts: list[Fact]) -> list[str]:
        """Sentences about one entity: the first names it, the others mostly say "this river"."""
        links: list[str] = self.rng.sample(LINKS, len(LINKS))
        sentences: list[str] = []
        for index, fact in enumerate(facts):
            if index == 0:
                sentences.append(self.say(fact))
                continue
            reference = "this" if self.chance(_THIS_SHARE) else "name"
            sentences.append(self._link(self.say(fact, reference=reference), links))
        return sentences

    def _link(self, sentence: str, links: list[str]) -> str:
        """Put a phrase of `links` before some sentences that begin with "This", and use it up."""
        begins = sentence.startswith(("Эта ", "Этот ", "Это ", "Эти "))
        if not (begins and links and self.chance(_LINK_SHARE)):
            return sentence
        return polish(links.pop() + sentence[:1].lower() + sentence[1:])

    def comparisons(self, facts: list[Fact], others: list[Fact], most: int) -> list[str]:
        """Sentences about the same relations of other entities, each with an opener of its own.

        Args:
            facts: Facts of one entity; they say which relations to compare.
            others: Facts of the whole table.
            most: Sentences wanted; there are fewer when facts or openers run out.

        Returns:
            Up to `most` sentences.
        """
        columns = {fact.relation.column for fact in facts}
        pool = [o for o in others if o.relation.column in columns and o.row.key != facts[0].row.key]
        openers = self.rng.sample(COMPARISONS, min(most, len(pool), len(COMPARISONS)))
        chosen = self.rng.sample(pool, len(openers))
        return [opener + self._compared(fact) for opener, fact in zip(openers, chosen, strict=True)]

    def _compared(self, fact: Fact) -> str:
        sentence = self.say(fact, reference="name")
        named = _is_name(fact.row, sentence.split(" ")[0])
        return sentence if named else sentence[:1].lower() + sentence[1:]


def _is_name(row: Row, word: str) -> bool:
    """Whether a sentence begins with a proper name, which keeps its capital letter."""
    names = {form.split(" ")[0] for form in row.noun.forms} | set(row.values.values())
    return any(name.split(" ")[0] == word and name[:1].isupper() for name in names)
