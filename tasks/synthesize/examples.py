"""Passages with their queries, after which a language model writes the query of a further passage.

A file of few_shot/ holds blocks between empty lines. The first one says what the passages are; each
other one is a passage and its query of every style, one labelled line each.
"""

from dataclasses import dataclass
from pathlib import Path

from tasks.contract.stage import StageError
from tasks.synthesize.drafts import Document
from tasks.synthesize.terms import sentences_of

FOLDER = Path(__file__).parent / "few_shot"
PASSAGE = "Отрывок"
STYLES = {"keywords": "Поисковый запрос", "question": "Вопрос", "headline": "Заголовок"}
LABELS = (PASSAGE, *STYLES.values())


@dataclass(frozen=True)
class Examples:
    """What a file of examples holds."""

    heading: str
    passages: list[str]
    queries: dict[str, list[str]]
    """Style to the query of each passage."""

    def prompt(self, style: str, passage: str) -> str:
        """The examples and a passage, up to where its query must follow."""
        blocks = [
            f"{PASSAGE}: {shown}\n{STYLES[style]}: {query}"
            for shown, query in zip(self.passages, self.queries[style], strict=True)
        ]
        return "\n\n".join([self.heading, *blocks, f"{PASSAGE}: {passage}\n{STYLES[style]}:"])


def read_examples(name: str, folder: Path = FOLDER) -> Examples:
    """The examples of few_shot/NAME.txt.

    Raises:
        StageError: There is no such file, or a block lacks a line.
    """
    path = folder / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        raise StageError(
            f"synthesize.endpoint.interface.examples names {name}, but {path} does not exist: take "
            f"one of {known}, or write that file like them"
        )
    heading, *blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    parsed = [_lines_of(block) for block in blocks]
    wrong = [number for number, lines in enumerate(parsed, 1) if [*lines] != list(LABELS)]
    if wrong or not parsed:
        raise StageError(
            f"{path}: block {wrong[0] if wrong else 1} after the heading must hold the lines "
            f"{', '.join(f'{label}: ...' for label in LABELS)}, in this order"
        )
    return Examples(
        heading,
        [lines[PASSAGE] for lines in parsed],
        {style: [lines[label] for lines in parsed] for style, label in STYLES.items()},
    )


def shown_passage(document: Document, characters: int) -> str:
    """The first sentences of a document on one line; a sentence that is longer ends at a word."""
    shown = ""
    for sentence in sentences_of(document.whole):
        longer = f"{shown} {sentence}".lstrip()
        if len(longer) > characters:
            break
        shown = longer
    if not shown:
        shown = " ".join(document.whole[: characters + 1].split())
        shown = shown[: characters + 1].rpartition(" ")[0] or shown[:characters]
    return shown


def _lines_of(block: str) -> dict[str, str]:
    lines = (line.partition(": ") for line in block.splitlines())
    return {label: text.strip() for label, _, text in lines if text.strip()}
