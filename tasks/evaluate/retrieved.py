"""What a rung found: the first queries of one retrieval task with their best passages."""

from collections.abc import Mapping
from typing import Any, cast

from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

from tasks.contract.stage import StageError

PASSAGES = 3
"""Passages shown per query."""

Ranking = dict[str, dict[str, float]]
"""Scores of the passages found, by query and passage id."""


class KeepsRanking:
    """Mixed into a retrieval task: keeps what was found, by subset and split.

    mteb itself hands it out only as a file, which takes longer to write than to compute.
    """

    rankings: dict[tuple[str, str], Ranking]

    def task_specific_scores(
        self,
        scores: dict[str, dict[str, float]],
        qrels: Mapping[str, Mapping[str, int]],
        results: Ranking,
        hf_split: str,
        hf_subset: str,
    ) -> dict[str, float]:
        """The scores that the official task adds; mteb calls this with the ranking."""
        self.__dict__.setdefault("rankings", {})[hf_subset, hf_split] = results
        official = cast("AbsTaskRetrieval", super())
        return official.task_specific_scores(scores, qrels, results, hf_split, hf_subset)


def retrieved_passages(task: AbsTask, num_queries: int) -> dict[str, Any]:
    """retrieved.json: the first `num_queries` queries by id, each with its best passages.

    Args:
        task: The evaluated task, its data still loaded.
        num_queries: Queries kept; fewer when the task has fewer.

    Raises:
        StageError: The task retrieves nothing.
    """
    if not isinstance(task, AbsTaskRetrieval) or not isinstance(task, KeepsRanking):
        raise StageError(
            f"report.example_task {task.metadata.name} is of type {task.metadata.type}: name a "
            f"retrieval task"
        )
    subset, split = task.hf_subsets[0], task.eval_splits[0]
    ranking = task.rankings[subset, split]
    data = task.dataset[subset][split]
    texts = dict(zip(data["queries"]["id"], data["queries"]["text"], strict=True))
    rows = {passage_id: row for row, passage_id in enumerate(data["corpus"]["id"])}
    shown = []
    for query_id in sorted(ranking)[:num_queries]:
        best = sorted(ranking[query_id].items(), key=lambda item: (-item[1], item[0]))[:PASSAGES]
        relevance = data["relevant_docs"][query_id]
        shown.append(
            {
                "id": query_id,
                "text": texts[query_id],
                "relevant": sorted(relevance),
                "passages": [
                    _passage(data["corpus"][rows[passage_id]], passage_id)
                    | {
                        "score": round(score, 4),
                        "relevance": int(relevance.get(passage_id, 0)),
                    }
                    for passage_id, score in best
                ],
            }
        )
    return {"task": task.metadata.name, "queries": shown}


def _passage(row: dict[str, Any], passage_id: str) -> dict[str, Any]:
    return {"id": passage_id, "title": row.get("title") or "", "text": row["text"]}
