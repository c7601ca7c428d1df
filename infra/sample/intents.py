"""User requests to a reference assistant, with their intents (intents.txt).

A section head is `[intent] table/column ...`: the entities that have those facts fill `{S}`;
`{O}` is another entity of the same table. A line is a question (`?`), an order (`!`) or anything
else people type (`.`); the kind decides which polite words fit.
"""

import random
from collections import Counter

from infra.sample.grammar import polish
from infra.sample.render import render
from infra.sample.tables import ROOT, Row, Table

_SAYING = ("{}.", "{}.", "слушай, {}.", "привет, {}.", "так, {}.", "ещё одно: {}.")
_MANNERS = {
    "?": (
        *(manner.replace(".", "?") for manner in _SAYING),
        "подскажи, {}?",
        "скажи, {}?",
        "не подскажешь, {}?",
        "вопрос такой: {}?",
        "хочу узнать, {}.",
        "{}? Это для школы.",
        "{}? Срочно нужно.",
    ),
    "!": (
        *_SAYING,
        "{}!",
        "{}, пожалуйста.",
        "пожалуйста, {}.",
        "{}, это для школы.",
        "{}, срочно нужно.",
    ),
    ".": _SAYING,
}
_CAPITAL_SHARE = 0.6
_BARE_SHARE = 0.4
"""Requests typed without the mark at the end."""

Section = tuple[str, list[tuple[str, str]], list[str]]


def load_intents() -> list[Section]:
    """Intent, its sources (table and column) and its templates, for every section."""
    sections: list[Section] = []
    for line in (ROOT / "intents.txt").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        if line.startswith("["):
            head, _, sources = line[1:].partition("] ")
            pairs = [tuple(source.split("/")) for source in sources.split(" ")]
            sections.append((head, [(pair[0], pair[1]) for pair in pairs], []))
        else:
            sections[-1][2].append(line)
    return sections


def _rows(tables: tuple[Table, ...], sources: list[tuple[str, str]]) -> list[list[Row]]:
    by_name = {table.name: table for table in tables}
    pools = [
        [row for row in by_name[name].rows if column in row.values] for name, column in sources
    ]
    return [pool for pool in pools if pool]


def _request(template: str, row: Row, other: Row) -> str:
    for case in "ngdaip":
        template = template.replace(f"{{O:{case}}}", other.noun.case(case))
    core = render(template.replace("{O}", other.noun.text), row)
    return core if core.startswith(row.noun.text) else core[:1].lower() + core[1:]


def write_intents(
    tables: tuple[Table, ...], rng: random.Random, per_intent: int, held_out: bool
) -> list[dict[str, str]]:
    """Requests of every intent.

    Args:
        tables: Entities that may be named.
        rng: Chooses template, entity and manner.
        per_intent: Requests of each intent, before duplicates are dropped; its sections share them.
        held_out: Use the last template of each section too, which training never sees.

    Returns:
        Records with `text` and `intent`.
    """
    records: list[dict[str, str]] = []
    loaded = load_intents()
    sections = Counter(intent for intent, _, _ in loaded)
    for intent, sources, templates in loaded:
        pools = _rows(tables, sources)
        usable = templates if held_out else templates[:-1]
        for index in range(per_intent // sections[intent]):
            pool = rng.choice(pools)
            row = rng.choice(pool)
            other = rng.choice([r for r in pool if r.key != row.key] or pool)
            kind, template = usable[index % len(usable)].split(" ", 1)
            core = _request(template, row, other)
            records.append(
                {"text": _dress(core, rng.choice(_MANNERS[kind]), rng), "intent": intent}
            )
    return records


def _dress(core: str, manner: str, rng: random.Random) -> str:
    text = manner.format(core)
    if rng.random() < _BARE_SHARE:
        text = text[:-1]
    return polish(text) if rng.random() < _CAPITAL_SHARE else text
