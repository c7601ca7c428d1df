"""Reads the fact tables (facts/*.tsv) and the sentence templates (templates/*.txt).

A template file starts with `key=value` lines, then one section `[column|label]` per relation.
A line is a statement (`.`), a question (`?`), a reverse question (`<`) or a title (`!`).
`~` after the column: a wrong value need not contradict. `!` after the column or the dot:
the subject is always named, never "this river".
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from infra.sample.grammar import Noun, decline_person, decline_phrase

ROOT = Path(__file__).parent
DOMAINS = (
    "geography",
    "chemistry",
    "astronomy",
    "biology",
    "literature",
    "history",
    "technology",
)
_ANIMATE = frozenset({"animals", "writers", "rulers"})
_DECLINED_AFTER_KIND = frozenset({"rivers"})
"""Tables whose names follow the case of the kind: "реки Волги", but "озера Байкал"."""


@dataclass(frozen=True)
class Relation:
    """One column of a table with everything that can be said or asked about it."""

    column: str
    label: str
    exclusive: bool
    named: bool
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    reverse: tuple[str, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One entity: its values and the noun phrases that may stand for it."""

    table: str
    name: str
    values: dict[str, str]
    noun: Noun
    kind: Noun
    mode: str

    @cached_property
    def key(self) -> str:
        """Name used for the split and for tracking, in lower case."""
        return self.name.lower()


@dataclass(frozen=True)
class Table:
    """One relation table of one domain."""

    name: str
    meta: dict[str, str]
    relations: tuple[Relation, ...]
    rows: tuple[Row, ...] = field(default=())

    @cached_property
    def domain(self) -> str:
        """One of `DOMAINS`."""
        return self.meta["domain"]


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header, empty cells dropped."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    header = lines[0].split("\t")
    rows: list[dict[str, str]] = []
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"{path.name}: {len(header)} cells expected, got {line!r}")
        rows.append({key: cell for key, cell in zip(header, cells, strict=True) if cell})
    return rows


def load_forms() -> dict[str, Noun]:
    """Hand-written forms of the names that the machine would decline wrongly."""
    nouns: dict[str, Noun] = {}
    for row in read_tsv(ROOT / "forms.tsv"):
        name, forms = row["name"], row.get("forms", "")
        if forms == "=":
            cases = (name,) * 6
        elif forms:
            cases = (name, *forms.split(","))
        else:
            cases = decline_phrase(name).forms
        nouns[name] = Noun(cases, row["gender"], row.get("prep", "в"))
    return nouns


def _read_templates(path: Path) -> tuple[dict[str, str], tuple[Relation, ...]]:
    meta: dict[str, str] = {}
    sections: list[tuple[str, dict[str, list[str]]]] = []
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        if line.startswith("["):
            sections.append((line.strip("[]"), {"s": [], "?": [], "<": [], "!": []}))
        elif not sections:
            key, _, value = line.partition("=")
            meta[key] = value
        elif line.startswith(".!"):
            sections[-1][1]["s"].append("!" + line[3:])
        else:
            sections[-1][1]["s" if line[0] == "." else line[0]].append(line[2:])
    return meta, tuple(_relation(head, lines) for head, lines in sections)


def _relation(head: str, lines: dict[str, list[str]]) -> Relation:
    column, _, label = head.partition("|")
    return Relation(
        column=column.rstrip("~!"),
        label=label,
        exclusive="~" not in column,
        named="!" in column,
        statements=tuple(lines["s"]),
        questions=tuple(lines["?"]),
        reverse=tuple(lines["<"]),
        titles=tuple(lines["!"]),
    )


def _phrase(text: str, forms: dict[str, Noun], animate: bool = False) -> Noun:
    return forms.get(text) or decline_phrase(text, animate)


def _kind(meta: dict[str, str], cells: dict[str, str], forms: dict[str, Noun]) -> Noun:
    spec = meta["kind"]
    text = cells[spec[1:]] if spec.startswith("@") else spec
    return _phrase(text, forms, meta["mode"] == "person")


def _noun(table: str, meta: dict[str, str], cells: dict[str, str], forms: dict[str, Noun]) -> Noun:
    name = cells["name"]
    if name in forms:
        return forms[name]
    if meta["mode"] == "person":
        return decline_person(name, cells["_g"])
    if meta["mode"] == "kind":
        return Noun((name,) * 6, "m")
    return decline_phrase(name, table in _ANIMATE)


def load_table(name: str, forms: dict[str, Noun]) -> Table:
    """One table with its templates and rows.

    Args:
        name: Stem of the two files, e.g. "rivers".
        forms: Hand-written forms from `load_forms`.

    Returns:
        The table; every cell with a template is a fact.
    """
    meta, relations = _read_templates(ROOT / "templates" / f"{name}.txt")
    rows: list[Row] = []
    for cells in read_tsv(ROOT / "facts" / f"{name}.tsv"):
        noun, kind = _noun(name, meta, cells, forms), _kind(meta, cells, forms)
        mode = meta["mode"]
        if mode == "kind":
            name_text = cells["name"] if "_kind" not in cells else f"«{cells['name']}»"
            noun = _apposition(kind, (name_text,) * 6)
        rows.append(Row(name, cells["name"], cells, noun, kind, mode))
    return Table(name, meta, relations, tuple(rows))


def _apposition(kind: Noun, names: tuple[str, ...]) -> Noun:
    pairs = zip(kind.forms, names, strict=True)
    return Noun(tuple(f"{form} {name}" for form, name in pairs), kind.gender)


def subject(row: Row, reference: str) -> Noun:
    """The noun phrase that stands for the entity.

    Args:
        row: The entity.
        reference: "name", "kind" ("река Волга") or "this" ("эта река").

    Returns:
        A phrase; "kind" falls back to the name where it would sound odd.
    """
    if reference == "this":
        return _demonstrative(row.kind)
    if reference == "kind" and row.mode == "both" and " " not in row.name:
        declined = row.table in _DECLINED_AFTER_KIND
        return _apposition(row.kind, row.noun.forms if declined else (row.name,) * 6)
    return row.noun


_THIS = {
    "m": "этот этого этому этот этим этом",
    "f": "эта этой этой эту этой этой",
    "n": "это этого этому это этим этом",
    "p": "эти этих этим эти этими этих",
}


def _demonstrative(kind: Noun) -> Noun:
    this = _THIS[kind.gender].split()
    if kind.gender == "m" and kind.case("a") == kind.case("g"):
        this[3] = this[1]
    forms = (f"{word} {form}" for word, form in zip(this, kind.forms, strict=True))
    return Noun(tuple(forms), kind.gender)


def load_tables() -> tuple[Table, ...]:
    """Every table, sorted by domain (in the order of `DOMAINS`), then by name."""
    forms = load_forms()
    names = sorted(path.stem for path in (ROOT / "facts").glob("*.tsv"))
    tables = [load_table(name, forms) for name in names]
    return tuple(sorted(tables, key=lambda table: (DOMAINS.index(table.domain), table.name)))


def count_facts(tables: tuple[Table, ...]) -> int:
    """Number of cells that a template can turn into a sentence."""
    return sum(
        relation.column in row.values
        for table in tables
        for relation in table.relations
        for row in table.rows
    )
