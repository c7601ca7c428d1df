"""What a rung found: the first queries of one retrieval task with their best passages."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

from tasks.stage import StageError

PASSAGES = 3
"""Passages shown per query."""


def retrieved_passages(task: AbsTask, predictions: Path, num_queries: int) -> dict[str, Any]:
    """retrieved.json: the first `num_queries` queries by id, each with its best passages.

    Args:
        task: The evaluated task, its data still loaded.
        predictions: Folder mteb wrote its predictions to.
        num_queries: Queries kept; fewer when the task has fewer.

    Raises:
        StageError: The task retrieves nothing.
    """
    if not isinstance(task, AbsTaskRetrieval):
        raise StageError(
            f"report.example_task {task.metadata.name} is of type {task.metadata.type}: name a "
            f"retrieval task"
        )
    found = json.loads((predictions / task.prediction_file_name).read_text(encoding="utf-8"))
    subset = task.hf_subsets[0]
    split = task.eval_splits[0]
    data = task.dataset[subset][split]
    relevant_docs = data["relevant_docs"]
    queries = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    rows = {passage_id: row for row, passage_id in enumerate(data["corpus"]["id"])}

    def passage(passage_id: str, score: float, relevance: Mapping[str, int]) -> dict[str, Any]:
        row = data["corpus"][rows[passage_id]]
        return {
            "id": passage_id,
            "title": row.get("title") or "",
            "text": row["text"],
            "score": round(score, 4),
            "relevance": int(relevance.get(passage_id, 0)),
        }

    shown = []
    for query_id in sorted(found[subset][split])[:num_queries]:
        best = sorted(found[subset][split][query_id].items(), key=lambda item: (-item[1], item[0]))
        shown.append(
            {
                "id": query_id,
                "text": queries[query_id],
                "relevant": sorted(relevant_docs[query_id]),
                "passages": [
                    passage(passage_id, score, relevant_docs[query_id])
                    for passage_id, score in best[:PASSAGES]
                ],
            }
        )
    return {"task": task.metadata.name, "queries": shown}
