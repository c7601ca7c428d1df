"""Scores on sources that no training read, against scikit-learn and scipy; and rivals as rungs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from model.encoder.encoder import Encoder
from tasks.baseline.random_vectors import RandomVectors
from tasks.baseline.rival import Rival
from tasks.contract.records import EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.evaluate.left_out import left_out_scores
from tasks.evaluate.rungs import RivalRung, open_rung
from tasks.params.teach import TeacherModel
from tasks.params.training import Prompts

PROMPTS = Prompts.model_validate(
    {
        "template": "{instruction}: {text}",
        "tasks": {"retrieval": "вопрос", "sts": "смысл", "bitext": "перевод"},
    }
)
ROWS = 30


class NoisyRung:
    """A document is near its query, with noise; remembers how each text was asked about."""

    def __init__(self, noise: float) -> None:
        self._noise = noise
        self._vectors = RandomVectors(dimension=24, seed=2)
        self._noises = RandomVectors(dimension=24, seed=3)
        self.asked: list[tuple[str, bool]] = []

    def encode(self, texts: list[str], prefix: str, *, is_document: bool) -> np.ndarray:
        self.asked.append((prefix, is_document))
        meanings = [text.split(" | ")[0] for text in texts]
        mixed = self._vectors.encode(meanings) + self._noise * self._noises.encode(texts)
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def row(source: str, task: str, number: int, positives: list[str], score: float | None) -> dict:
    return {
        "id": f"{number:04d}", "task": task, "source": source, "lang": "ru",
        "query": f"смысл {number} | вопрос", "positives": positives, "positive_scores": None,
        "negatives": [], "negative_scores": None, "label": None, "score": score,
    }  # fmt: skip


def params_of(tasks: dict[str, str], rows: int) -> Any:
    sources = {name: SimpleNamespace(task=task) for name, task in tasks.items()}
    return SimpleNamespace(
        prompts=PROMPTS,
        left_out=set(tasks),
        ingest=SimpleNamespace(sources=sources | {"trained": SimpleNamespace(task="retrieval")}),
        evaluate=SimpleNamespace(left_out_rows=rows),
    )


def written(rows: list[dict], folder: Path) -> Path:
    # the rows of a shard lie in no order
    write_table(pa.Table.from_pylist(rows[::-1], schema=EXAMPLE_SCHEMA), folder / "development")
    return folder / "development"


@pytest.mark.parametrize("noise", [0.1, 1.5, 40.0])
def test_a_ranked_source_has_the_ndcg_of_scikit_learn(tmp_path: Path, noise: float) -> None:
    rows = [row("held", "retrieval", n, [f"смысл {n} | ответ"], None) for n in range(ROWS)]
    rows.append(row("trained", "retrieval", 99, ["чужой документ"], None))
    rung = NoisyRung(noise)
    scores = left_out_scores(params_of({"held": "retrieval"}, 20), rung, written(rows, tmp_path))
    queries = rung.encode([each["query"] for each in rows[:20]], "", is_document=False)
    documents = rung.encode([each["positives"][0] for each in rows[:20]], "", is_document=True)
    expected = ndcg_score(np.eye(20), queries @ documents.T, k=10)
    assert scores == {"held": pytest.approx(expected, abs=1e-6)}
    assert rung.asked[:2] == [("вопрос: ", False), ("", True)]


def test_graded_pairs_are_ordered_and_translations_are_no_documents(tmp_path: Path) -> None:
    grades = np.linspace(0, 1, ROWS)[np.random.default_rng(4).permutation(ROWS)]
    rows = [
        row("pairs", "sts", n, [f"смысл {n} | вторая {grade:.2f}"], grade)
        for n, grade in enumerate(grades)
    ]
    rows += [row("words", "bitext", n, [f"смысл {n} | word"], None) for n in range(ROWS)]
    rung = NoisyRung(1.0)
    tasks = {"pairs": "sts", "words": "bitext"}
    scores = left_out_scores(params_of(tasks, 500), rung, written(rows, tmp_path))
    first = rung.encode([each["query"] for each in rows[:ROWS]], "", is_document=False)
    second = rung.encode([each["positives"][0] for each in rows[:ROWS]], "", is_document=False)
    expected = spearmanr((first * second).sum(axis=1), grades).statistic
    assert scores["pairs"] == pytest.approx(expected, abs=1e-6)
    assert rung.asked[:4] == [
        ("смысл: ", False), ("смысл: ", False), ("перевод: ", False), ("", False),
    ]  # fmt: skip


def test_a_text_that_answers_several_queries_counts_for_each(tmp_path: Path) -> None:
    rows = [row("held", "retrieval", n, [f"смысл {n // 2} | ответ"], None) for n in range(8)]
    for each in rows:
        each["query"] = each["positives"][0].replace("ответ", "вопрос") + each["id"]
    scores = left_out_scores(
        params_of({"held": "retrieval"}, 8), NoisyRung(0.01), written(rows, tmp_path)
    )
    assert scores == {"held": 1.0}


def test_without_sources_nothing_is_read(tmp_path: Path) -> None:
    assert left_out_scores(params_of({}, 5), NoisyRung(1.0), tmp_path / "nowhere") == {}


def test_a_source_without_rows_is_told(tmp_path: Path) -> None:
    rows = [row("held", "retrieval", 1, ["ответ"], None)]
    with pytest.raises(StageError, match="source held is left out, but 1 of its rows"):
        left_out_scores(params_of({"held": "retrieval"}, 5), NoisyRung(1), written(rows, tmp_path))


def test_a_rival_is_shown_texts_behind_its_own_prompts(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    pico_encoder.save(tmp_path / "theirs")
    settings = TeacherModel(
        source=str(tmp_path / "theirs"), revision=None, query_prompt="query: ",
        document_prompt="passage: ", max_length_tokens=48,
    )  # fmt: skip
    Rival("theirs", settings, "abc").save(tmp_path / "rung")
    rung = open_rung(
        tmp_path / "rung",
        SimpleNamespace(device="cpu"),  # pyright: ignore[reportArgumentType]
        attn_implementation="sdpa",
        batch_tokens=100,
        max_length_tokens=48,
    )
    assert isinstance(rung, RivalRung)
    for is_document, prompt in ((False, "query: "), (True, "passage: ")):
        ours = rung.encode(pico_texts, "наша: ", is_document=is_document)
        theirs = pico_encoder.encode(
            pico_texts, prompt=prompt, batch_tokens=1000, max_length_tokens=48
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
