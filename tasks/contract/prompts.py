"""The instruction before a text, one rule for training, mining and evaluation."""

from tasks.params.base import PASSAGES
from tasks.params.training import Prompts

SYMMETRIC_TASKS = frozenset({"sts", "classification", "clustering"})
"""Both sides of a pair are texts of one kind, so both get the instruction."""


def query_prompt(prompts: Prompts, task: str) -> str:
    """Prefix of a query of `task`: the template up to its text, "" for an empty instruction.

    Passages have none unless one is given: they are plain texts.

    Raises:
        KeyError: The task has no entry in prompts.tasks.
    """
    instructions = {PASSAGES: "", **{str(name): text for name, text in prompts.tasks.items()}}
    instruction = instructions[task]
    if not instruction:
        return ""
    return prompts.template.removesuffix("{text}").replace("{instruction}", instruction)


def document_prompt(prompts: Prompts, task: str) -> str:
    """Prefix of a document: that of the query for a symmetric task, else ""."""
    return query_prompt(prompts, task) if task in SYMMETRIC_TASKS else ""
