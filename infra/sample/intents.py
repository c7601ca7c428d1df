"""User requests to a reference assistant, with their intents (intents.txt).

A section head is `[intent] table/column ...`: the entities that have those facts fill `{S}`;
`{O}` is another entity of the same table.
"""

import random

from infra.sample.grammar import polish
from infra.sample.render import render
from infra.sample.tables import ROOT, Row, Table

_OPENINGS = (
    "{}",
    "{}",
    "слушай, {}",
    "{}, срочно нужно",
    "привет, {}",
    "{}, это для школы",
    "так, {}",
    "ещё одно: {}",
)
_ASKING = (
    *_OPENINGS,
    "подскажи, {}",
    "скажи, {}",
    "вопрос такой: {}",
    "хочу узнать, {}",
    "не подскажешь, {}",
)
_TELLING = (*_OPENINGS, "{}, пожалуйста", "пожалуйста, {}")
_CAPITAL_SHARE = 0.6
_ENDINGS = ("", "", ".", "!", "?")
_QUESTION_WORDS = (
    "когда",
    "где",
    "кто",
    "что",
    "чем",
    "как",
    "какой",
    "какого",
    "какую",
    "какие",
    "сколько",
    "в каком",
    "на каком",
    "в какой",
    "в чём",
    "о чём",
    "чьих",
    "кому",
    "кого",
    "кем",
    "куда",
    "насколько",
    "правда",
    "можно",
    "во сколько",
)

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
    return core if core[:1] == row.noun.text[:1] else core[:1].lower() + core[1:]


def write_intents(
    tables: tuple[Table, ...], rng: random.Random, per_intent: int, held_out: bool
) -> list[dict[str, str]]:
    """Requests of every intent.

    Args:
        tables: Entities that may be named.
        rng: Chooses template, entity and manner.
        per_intent: Requests of each intent, before duplicates are dropped.
        held_out: Use the last template of each intent too, which training never sees.

    Returns:
        Records with `text` and `intent`.
    """
    records: list[dict[str, str]] = []
    for intent, sources, templates in load_intents():
        pools = _rows(tables, sources)
        usable = templates if held_out else templates[:-1]
        for index in range(per_intent):
            pool = rng.choice(pools)
            row = rng.choice(pool)
            other = rng.choice([r for r in pool if r.key != row.key] or pool)
            core = _request(usable[index % len(usable)], row, other)
            records.append({"text": _dress(core, rng), "intent": intent})
    return records


def _dress(core: str, rng: random.Random) -> str:
    asks = core.startswith(_QUESTION_WORDS)
    text = rng.choice(_ASKING if asks else _TELLING).format(core)
    if rng.random() < _CAPITAL_SHARE:
        text = polish(text)
    ending = rng.choice(_ENDINGS)
    if ending == "?" and not asks:
        ending = "."
    if ending in {".", "!"} and asks:
        ending = "?"
    return text + ending
