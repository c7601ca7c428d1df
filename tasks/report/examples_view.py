"""Example queries with the passages found before and after training."""

from typing import Any

from tasks.report.run import Run

SHOWN_CHARACTERS = 280
"""A passage is cut there on the page."""


def examples_view(run: Run) -> dict[str, Any] | None:
    """The example queries of both rungs side by side; None when a rung kept none."""
    section = run.params.report
    before = run.json(f"evaluate/{section.before}/retrieved.json")
    after = run.json(f"evaluate/{section.after}/retrieved.json")
    if before is None or after is None:
        return None
    other = {query["id"]: query for query in after["queries"]}
    queries = [
        {
            "text": query["text"],
            "sides": [
                _side(section.before, query),
                _side(section.after, other[query["id"]]),
            ],
        }
        for query in before["queries"]
        if query["id"] in other
    ]
    found = {
        rung: sum(query["sides"][number]["is_found"] for query in queries)
        for number, rung in enumerate((section.before, section.after))
    }
    return {"task": before["task"], "queries": queries, "found": found}


def _side(rung: str, query: dict[str, Any]) -> dict[str, Any]:
    passages = [
        {
            "title": passage["title"],
            "text": _cut(passage["text"]),
            "score": f"{passage['score']:.3f}",
            "is_relevant": passage["relevance"] > 0,
        }
        for passage in query["passages"]
    ]
    return {
        "rung": rung,
        "passages": passages,
        "is_found": any(passage["is_relevant"] for passage in passages),
    }


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return text[:SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " \u2026"
