"""Prompts: the template up to the text, on documents of symmetric tasks only."""

import pytest

from tasks.contract.prompts import document_prompt, query_prompt
from tasks.params.training import Prompts

PROMPTS = Prompts(
    template="Instruct: {instruction}\nQuery: {text}",
    tasks={"retrieval": "Найди ответ", "sts": "Найди похожее", "nli": "", "classification": "Тема"},
)


def test_a_query_gets_the_instruction_of_its_task() -> None:
    assert query_prompt(PROMPTS, "retrieval") == "Instruct: Найди ответ\nQuery: "


def test_an_empty_instruction_leaves_the_text_bare() -> None:
    assert query_prompt(PROMPTS, "nli") == ""


@pytest.mark.parametrize("task", ["sts", "classification"])
def test_documents_of_symmetric_tasks_are_asked_like_queries(task: str) -> None:
    assert document_prompt(PROMPTS, task) == query_prompt(PROMPTS, task) != ""


@pytest.mark.parametrize("task", ["retrieval", "nli"])
def test_documents_of_other_tasks_stay_bare(task: str) -> None:
    assert document_prompt(PROMPTS, task) == ""


def test_braces_in_an_instruction_are_kept() -> None:
    prompts = Prompts(template="{instruction}: {text}", tasks={"sts": "a {b} {text}"})
    assert query_prompt(prompts, "sts") == "a {b} {text}: "
