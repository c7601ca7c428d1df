"""Training files about single entities and topics: documents, questions, titles, labels."""

from collections.abc import Callable

from infra.sample.compose import Composer, Fact, all_facts, facts_of, seeded
from infra.sample.render import render
from infra.sample.tables import Row, Table

Record = dict[str, str]

DOCUMENT_SENTENCES = (3, 8)
"""Fewest and most sentences of a document."""
_GENERAL_TITLES = (
    "{S}: {labels}",
    "Что нужно знать: {S}",
    "Справка: {S}",
    "{S} коротко и по делу",
    "Факты: {S}",
)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class TrainWriter:
    """Writes the texts of the training side; one random generator for each file."""

    def __init__(self, tables: tuple[Table, ...], seed: int) -> None:
        self._tables = tables
        self._facts = all_facts(tables)
        self._seed = seed

    def _composer(self, name: str) -> Composer:
        return Composer(seeded(self._seed, name), held_out=False)

    def _table_facts(self, table: Table) -> list[Fact]:
        return [fact for row in table.rows for fact in facts_of(table, row)]

    def _body(self, composer: Composer, facts: list[Fact], siblings: list[Fact]) -> list[str]:
        """At least three sentences about one entity, padded with comparisons."""
        chosen = facts[:]
        composer.rng.shuffle(chosen)
        sentences = composer.passage(chosen[: DOCUMENT_SENTENCES[1]])
        wanted = max(DOCUMENT_SENTENCES[0], len(sentences) + composer.rng.randint(0, 1))
        return sentences + composer.comparisons(facts, siblings, wanted - len(sentences))

    def _named_title(self, composer: Composer, row: Row, facts: list[Fact]) -> str:
        if composer.chance(0.5):
            return composer.title(composer.rng.choice(facts))
        labels = " и ".join(
            f.relation.label for f in composer.rng.sample(facts, min(2, len(facts)))
        )
        template = composer.rng.choice(_GENERAL_TITLES).replace("{labels}", labels)
        return render(template, row)

    def documents(self) -> list[Record]:
        """Two documents for each entity, then the topical ones."""
        composer = self._composer("documents")
        records: list[Record] = []
        for table in self._tables:
            siblings = self._table_facts(table)
            for row in table.rows:
                facts = facts_of(table, row)
                for attempt in range(2 if facts else 0):
                    title = _capital(row.noun.text)
                    if attempt:
                        title = self._named_title(composer, row, facts)
                    body = self._body(composer, facts, siblings)
                    if len(body) >= DOCUMENT_SENTENCES[0]:
                        records.append({"title": title, "text": " ".join(body)})
        return records + self._topical(composer)

    def _topical(self, composer: Composer) -> list[Record]:
        """Documents such as "Реки Африки": one sentence for each of several entities."""
        records: list[Record] = []
        for table in self._tables:
            for column, title in _groups(table):
                for rows in _grouped(table, column):
                    records.extend(self._group_documents(composer, table, column, title, rows))
        return records

    def _group_documents(
        self, composer: Composer, table: Table, column: str, title: str, rows: list[Row]
    ) -> list[Record]:
        records: list[Record] = []
        low, high = DOCUMENT_SENTENCES
        for _ in range(1 + len(rows) // high):
            sentences: list[str] = []
            for row in composer.rng.sample(rows, min(len(rows), composer.rng.randint(4, high))):
                facts = [f for f in facts_of(table, row) if f.relation.column != column]
                if facts:
                    sentences.append(composer.say(composer.rng.choice(facts), reference="name"))
            if len(sentences) >= low:
                records.append({"title": render(title, rows[0]), "text": " ".join(sentences)})
        return records

    def questions(self, per_fact: int) -> list[Record]:
        """Questions with a passage that answers them, some reversed (value to entity)."""
        composer = self._composer("questions")
        by_row: dict[tuple[str, str], list[Fact]] = {}
        for fact in self._facts:
            by_row.setdefault(fact.key[:2], []).append(fact)
        unique = unique_values(self._tables)
        records: list[Record] = []
        for fact in self._facts:
            others = [f for f in by_row[fact.key[:2]] if f is not fact]
            for question in self._asked(composer, fact, fact.key in unique, per_fact):
                facts = [
                    fact,
                    *composer.rng.sample(others, min(len(others), composer.rng.randint(0, 2))),
                ]
                composer.rng.shuffle(facts)
                records.append({"question": question, "passage": " ".join(composer.passage(facts))})
        return records

    def _asked(self, composer: Composer, fact: Fact, unique: bool, count: int) -> list[str]:
        templates = composer.questions(fact)
        chosen = composer.rng.sample(templates, min(count, len(templates)))
        asked = [render(template, fact.row, composer.reference(fact)) for template in chosen]
        if unique and fact.relation.reverse:
            asked.append(render(composer.rng.choice(fact.relation.reverse), fact.row))
        return asked

    def title_body(self, per_entity: int) -> list[Record]:
        """Headlines with a body of at least three sentences."""
        composer = self._composer("title_body")
        records: list[Record] = []
        for table in self._tables:
            siblings = self._table_facts(table)
            for row in table.rows:
                facts = facts_of(table, row)
                for _ in range(per_entity if facts else 0):
                    title = self._named_title(composer, row, facts)
                    body = self._body(composer, facts, siblings)
                    records.append({"title": title, "body": " ".join(body)})
        return records

    def topics(self, per_topic: int) -> list[Record]:
        """Short texts of every kind with the topic of their table."""
        return self._labelled("topics", per_topic, "label", lambda fact: fact.table.meta["topic"])

    def clusters(self, per_cluster: int, smallest: int) -> list[Record]:
        """Short texts with a fine cluster; clusters of fewer than `smallest` facts are left out."""
        counts: dict[str, int] = {}
        for fact in self._facts:
            name = cluster_name(fact)
            counts[name] = counts.get(name, 0) + 1
        records = self._labelled("clusters", per_cluster, "cluster", cluster_name)
        return [record for record in records if counts[record["cluster"]] >= smallest]

    def _labelled(
        self, name: str, limit: int, column: str, label_of: Callable[[Fact], str]
    ) -> list[Record]:
        composer = self._composer(name)
        by_label: dict[str, list[Fact]] = {}
        for fact in self._facts:
            by_label.setdefault(label_of(fact), []).append(fact)
        records: list[Record] = []
        for label in sorted(by_label):
            facts = by_label[label]
            for index in range(limit):
                fact = (
                    facts[index % len(facts)] if index >= len(facts) else composer.rng.choice(facts)
                )
                records.append({"text": composer.short_text(fact), column: label})
        return records


def cluster_name(fact: Fact) -> str:
    """The fine cluster of a fact: the table's, divided by a column where the template says so."""
    name, _, column = fact.table.meta["cluster"].partition(": @")
    value = fact.row.values.get(column) if column else None
    return f"{name}: {value}" if value else name


def unique_values(tables: tuple[Table, ...]) -> set[tuple[str, str, str]]:
    """Keys of the facts whose value no other entity of the table has."""
    seen: dict[tuple[str, str, str], list[Fact]] = {}
    for fact in all_facts(tables):
        seen.setdefault((fact.table.name, fact.relation.column, fact.value), []).append(fact)
    return {facts[0].key for facts in seen.values() if len(facts) == 1}


def _groups(table: Table) -> list[tuple[str, str]]:
    return [(key[6:], title) for key, title in table.meta.items() if key.startswith("group.")]


def _grouped(table: Table, column: str) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        if column in row.values:
            groups.setdefault(row.values[column], []).append(row)
    return [
        groups[value] for value in sorted(groups) if len(groups[value]) >= DOCUMENT_SENTENCES[0]
    ]
