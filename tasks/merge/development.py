"""Scores on the development split: rows kept out of training that no benchmark contains.

Shape letters: Q = queries, K = retrieved documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from model.encoder.encoder import Encoder
from model.encoder.precision import Precision
from model.mining import top_k
from model.ranking import mean_ndcg, spearman
from tasks.contract.prompts import document_prompt, query_prompt
from tasks.contract.records import match_key
from tasks.contract.stage import StageError
from tasks.merge.labelled import LabelledSource, accuracy, select_labelled
from tasks.params.load import Prompts

RANKED_TASKS = ("retrieval", "nli")
# Positives of training rows among the documents make the ranking harder: so many for each row of
# the development split, and at most so many in all, since every candidate encodes them again.
DISTRACTORS_PER_ROW = 4
MAX_DISTRACTORS = 5000
CUTOFF = 10


@dataclass(frozen=True)
class DevelopmentSet:
    """Queries to be ranked, pairs to be graded, texts to be classified; not all are empty."""

    queries: list[tuple[str, str]]
    """Prompt and text."""
    relevant: list[set[int]]
    """Numbers of each query's positives in `documents`."""
    documents: list[str]
    pairs: list[tuple[str, str]]
    grades: list[float]
    pair_prompts: tuple[str, str]
    """Before the first and the second text of every pair."""
    labelled: list[LabelledSource]


def select_development(
    development: pa.Table, training: pa.Table, prompts: Prompts, max_examples: int
) -> DevelopmentSet:
    """The first rows by id, which is a hash, of each kind of task.

    Args:
        development: Rows of the development split.
        training: Rows of training, whose positives serve as distractors and whose labelled
            texts stand for their classes.
        prompts: Prompts of queries and pairs.
        max_examples: Rows of retrieval and nli together, of sts, and of labelled sources.

    Raises:
        StageError: There is no such row.
    """
    ranked = _first_rows(development, RANKED_TASKS, max_examples)
    graded = _first_rows(development, ("sts",), max_examples)
    labelled = select_labelled(development, training, prompts, max_examples)
    if not ranked and not graded and not labelled:
        raise StageError(
            "the development split has no row of any task but bitext to choose a merge by: "
            "raise ingest.development_fraction, or set merge.method to uniform_soup"
        )
    documents = _Documents()
    queries, relevant = _queries(ranked, prompts, documents)
    max_distractors = min(MAX_DISTRACTORS, DISTRACTORS_PER_ROW * len(ranked))
    for row in _first_rows(training, RANKED_TASKS, max_distractors):
        documents.number_of(row["positives"][0])
    return DevelopmentSet(
        queries=queries,
        relevant=relevant,
        documents=documents.texts,
        pairs=[(row["query"], row["positives"][0]) for row in graded],
        grades=[row["score"] for row in graded],
        pair_prompts=_pair_prompts(prompts) if graded else ("", ""),
        labelled=labelled,
    )


class _Documents:
    """Documents in the order they were met, each text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number_of(self, text: str) -> int:
        """Number of the text, which is added if it is new."""
        number = self._numbers.setdefault(_key(text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


def _queries(
    rows: list[dict], prompts: Prompts, documents: _Documents
) -> tuple[list[tuple[str, str]], list[set[int]]]:
    """Prompt and text of each query, once, and the numbers of the positives of all its rows."""
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    relevant: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        prompt = query_prompt(prompts, row["task"])
        query = (prompt, _key(row["query"]))
        texts.setdefault(query, (prompt, row["query"]))
        relevant.setdefault(query, set()).update(map(documents.number_of, row["positives"]))
    return list(texts.values()), list(relevant.values())


def _pair_prompts(prompts: Prompts) -> tuple[str, str]:
    return query_prompt(prompts, "sts"), document_prompt(prompts, "sts")


def _first_rows(table: pa.Table, tasks: tuple[str, ...], max_rows: int) -> list[dict]:
    is_wanted = [task in tasks for task in table["task"].to_pylist()]
    rows = table.filter(pa.array(is_wanted, pa.bool_())).sort_by("id")
    return rows.slice(0, max_rows).to_pylist()


def _key(text: str) -> str:
    return match_key(text) or text


def score_encoder(
    encoder: Encoder,
    chosen: DevelopmentSet,
    batch_tokens: int,
    precision: Precision,
) -> dict[str, float]:
    """nDCG@10 of the ranking, Spearman correlation of the pairs, accuracy of the classes.

    Returns:
        Those of them that there is something for, and their mean.
    """
    scores = {}

    def encode(texts: Sequence[str], prompt: str) -> np.ndarray:
        return encoder.encode(
            list(texts), prompt=prompt, batch_tokens=batch_tokens, precision=precision
        )

    if chosen.queries:
        query_QD = np.empty((len(chosen.queries), encoder.embedding_size), dtype=np.float32)
        for prompt in sorted({prompt for prompt, _ in chosen.queries}):
            rows = [row for row, (own, _) in enumerate(chosen.queries) if own == prompt]
            query_QD[rows] = encode([chosen.queries[row][1] for row in rows], prompt)
        document_ND = torch.from_numpy(encode(chosen.documents, ""))
        _, index_QK = top_k(torch.from_numpy(query_QD), document_ND, CUTOFF)
        scores["ndcg_at_10"] = mean_ndcg(index_QK.tolist(), chosen.relevant)
    if chosen.pairs:
        left = encode([first for first, _ in chosen.pairs], chosen.pair_prompts[0])
        right = encode([second for _, second in chosen.pairs], chosen.pair_prompts[1])
        scores["spearman"] = spearman((left * right).sum(1), np.array(chosen.grades))
    if chosen.labelled:
        scores["accuracy"] = accuracy(chosen.labelled, encode)
    return scores | {"mean": sum(scores.values()) / len(scores)}
