"""Scores on the sources that no training read: how a model does on texts unlike its own.

Each source is ranked, or its pairs are graded, among its own rows alone. The rows are the first by
id, which is a hash, so they are the same for every rung and every model.

Shape letters: Q = queries, N = documents, K = retrieved documents, D = embedding size.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from model.mining import top_k
from model.ranking import mean_ndcg, spearman
from tasks.contract.prompts import document_prompt, query_prompt
from tasks.contract.records import match_key, read_table
from tasks.contract.stage import StageError
from tasks.evaluate.rungs import Rung
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS

DEVELOPMENT = ARTIFACTS / "ingest" / "development"
CUTOFF = 10


def left_out_scores(
    params: Params, rung: Rung, development: Path = DEVELOPMENT
) -> dict[str, float]:
    """Source to its score, in the order of ingest.sources; {} if none is left out.

    nDCG@10 of the positives of each query, 0 to 1, or Spearman's correlation of graded pairs, -1
    to 1.

    Raises:
        StageError: A source that is left out has fewer than two rows.
    """
    names = [name for name in params.ingest.sources if name in params.left_out]
    if not names:
        return {}
    table = read_table(development)
    scores: dict[str, float] = {}
    for name, rows in _rows(table, names, params.evaluate.left_out_rows):
        task = params.ingest.sources[name].task
        queries = rows["query"].to_pylist()
        query_QD = rung.encode(queries, query_prompt(params.prompts, task), is_document=False)
        prefix = document_prompt(params.prompts, task)
        if task == "sts":
            others = [positives[0] for positives in rows["positives"].to_pylist()]
            other_QD = rung.encode(others, prefix, is_document=False)
            cosine_Q = (query_QD * other_QD).sum(axis=1)
            score = spearman(cosine_Q, rows["score"].to_numpy())
        else:
            documents, relevant = _documents(queries, rows["positives"].to_pylist())
            # translations and hypotheses are texts of the same kind as their queries
            is_document = task == "retrieval"
            document_ND = rung.encode(documents, prefix, is_document=is_document)
            score = _ndcg(query_QD, document_ND, relevant)
        scores[name] = round(score, 6)
    return scores


def _rows(table: pa.Table, names: list[str], most: int) -> Iterator[tuple[str, pa.Table]]:
    """The first rows by id of each source.

    Raises:
        StageError: There are fewer than two.
    """
    for name in names:
        rows = table.filter(pc.field("source") == name).sort_by("id").slice(0, most)
        if rows.num_rows < 2:  # noqa: PLR2004 - one row ranks nothing
            raise StageError(
                f"source {name} is left out, but {rows.num_rows} of its rows were admitted, and "
                "nothing can be judged on fewer than two: see artifacts/ingest/metrics.json for why"
            )
        yield name, rows


def _documents(queries: list[str], positives: list[list[str]]) -> tuple[list[str], list[set[int]]]:
    """Different documents, and the numbers of those that answer each query in any of its rows."""
    number_of: dict[str, int] = {}
    texts: list[str] = []
    answers: dict[str, set[int]] = {}
    for query, own in zip(queries, positives, strict=True):
        for text in own:
            number = number_of.setdefault(match_key(text) or text, len(texts))
            if number == len(texts):
                texts.append(text)
            answers.setdefault(match_key(query) or query, set()).add(number)
    return texts, [answers[match_key(query) or query] for query in queries]


def _ndcg(query_QD: np.ndarray, document_ND: np.ndarray, relevant: list[set[int]]) -> float:
    count = min(CUTOFF, len(document_ND))
    _, index_QK = top_k(torch.from_numpy(query_QD), torch.from_numpy(document_ND), count)
    return mean_ndcg(index_QK.tolist(), relevant)
