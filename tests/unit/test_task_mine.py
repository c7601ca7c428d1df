"""The stage mine on small tables, with the pico encoder as the model of stage 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.encoder.encoder import Encoder
from model.training.data.recorded_vectors import text_keys, write_vectors
from tasks.contract.prompts import query_prompt
from tasks.contract.records import (
    DOCUMENT_SCHEMA,
    EXAMPLE_SCHEMA,
    match_key,
    read_table,
    write_table,
)
from tasks.contract.stage import StageError
from tasks.mine.__main__ import mine
from tasks.params.load import Params, load_params

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
Stage = Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]


def example(query: str, *positives: str, **others: Any) -> dict[str, Any]:
    row = {
        "id": match_key(query + "".join(positives)),
        "task": "retrieval",
        "source": "questions",
        "lang": "ru",
        "query": query,
        "positives": list(positives),
        "positive_scores": None,
        "negatives": [],
        "negative_scores": None,
        "label": None,
        "score": None,
    }
    return row | others


def document(text: str, title: str = "") -> dict[str, Any]:
    return {"id": text, "source": "documents", "lang": "ru", "title": title, "text": text}


@pytest.fixture
def run(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Runs the stage in a fresh folder; gives its rows and its metrics."""
    monkeypatch.chdir(tmp_path)

    def run_stage(examples, documents, prepare=None, **settings):
        shutil.rmtree("artifacts", ignore_errors=True)
        shutil.copytree(pico_folder, "artifacts/pretrain/model")
        tables = {"examples": (examples, EXAMPLE_SCHEMA), "documents": (documents, DOCUMENT_SCHEMA)}
        for name, (rows, schema) in tables.items():
            write_table(pa.Table.from_pylist(rows, schema), Path("artifacts/ingest") / name)
        if prepare is not None:
            prepare()
        mine(params_with(**settings))
        metrics = json.loads(Path("artifacts/mine/metrics.json").read_text())
        return read_table(Path("artifacts/mine/examples")).to_pylist(), metrics

    return run_stage


def params_with(**settings: Any) -> Params:
    params = load_params(PROFILE)
    # a share this high keeps what random weights call near
    loose = {"sources": ["questions"], "max_positive_share": 100.0, "top_k": 50} | settings
    compute = params.compute.model_copy(update={"device": "cpu", "precision": "fp32", "threads": 1})
    return params.model_copy(
        update={
            "mine": params.mine.model_copy(update=loose),
            "compute": compute,
        }
    )


def test_negatives_are_the_nearest_texts_below_the_cap(
    run: Stage, pico_folder: Path, pico_texts: list[str]
):
    """Against numpy over all texts, float64."""
    queries = ["Что стоит на столе?", "Где кошка?", "Какая река?"]
    examples = [example(query, pico_texts[row]) for row, query in enumerate(queries)]
    documents = [document(text) for text in pico_texts[3:]]
    rows, _ = run(examples, documents, max_positive_share=0.97, negatives=4)
    encoder = Encoder.load(pico_folder)
    corpus = pico_texts[3:] + pico_texts[:3]
    prompt = query_prompt(load_params(PROFILE).prompts, "retrieval")
    query_QD = encoder.encode(queries, prompt=prompt, batch_tokens=4096).astype(np.float64)
    score_QN = query_QD @ encoder.encode(corpus, batch_tokens=4096).astype(np.float64).T
    for row, scores, own in zip(rows, score_QN, pico_texts, strict=False):
        positive = scores[corpus.index(own)]
        cap = positive - 0.03 * abs(positive)
        nearest = sorted(np.flatnonzero(scores < cap), key=lambda n: -scores[n])[:4]
        assert row["negatives"] == [corpus[n] for n in nearest]
        assert row["negative_scores"] == pytest.approx(scores[nearest].tolist(), abs=1e-6)


def test_a_teacher_says_what_is_near(run: Stage, pico_texts: list[str]):
    """As it was recorded: here each document is as near as its number says."""
    examples = [example("Что стоит на столе?", "Самовар.")]
    documents = [document(text) for text in pico_texts[:4]]
    cosines = {"Самовар.": 0.9, **dict(zip(pico_texts[:4], (0.1, 0.8, 0.89, 0.5), strict=True))}
    shown = [(True, "Что стоит на столе?"), *((False, text) for text in cosines)]
    vectors = np.array([(1.0, 0.0), *((x, np.sqrt(1 - x * x)) for x in cosines.values())])

    def record() -> None:
        keys = text_keys(shown)
        order = np.argsort(keys)
        folder = Path("artifacts/teach/vectors/e5")
        write_vectors(folder, keys[order], 2, [vectors[order].astype(np.float16)])

    rows, _ = run(
        examples, documents, prepare=record, model="teach/e5", max_positive_share=0.95, negatives=2
    )
    assert rows[0]["negatives"] == [pico_texts[1], pico_texts[3]]
    assert rows[0]["negative_scores"] == pytest.approx([0.8, 0.5], abs=1e-3)
    with pytest.raises(StageError, match=r"have no vector in artifacts/teach/vectors/e5"):
        run(examples, [*documents, document("Новый.")], prepare=record, model="teach/e5")


def test_no_positive_of_the_same_query_is_mined_though_it_stands_in_another_row(run: Stage):
    examples = [
        example("Что пьют?", "Пьют чай."),
        example("что  пьют", "Пьют кофе."),
        example("Где живут?", "Живут в доме."),
    ]
    rows, _ = run(examples, [document("Пьют КОФЕ!"), document("Пьют воду.")])
    assert set(rows[0]["negatives"]) == set(rows[1]["negatives"])
    assert set(rows[0]["negatives"]) == {"Пьют воду.", "Живут в доме."}


def test_the_query_itself_is_not_mined(run: Stage):
    rows, _ = run([example("Пьют чай.", "Чай пьют.")], [document("пьют чай"), document("Снег.")])
    assert rows[0]["negatives"] == ["Снег."]


def test_a_document_that_is_the_positive_without_its_title_is_not_mined(run: Stage):
    documents = [document("Это озеро.", title="Байкал"), document("Это река.", title="Волга")]
    rows, _ = run([example("Что такое Байкал?", "Байкал\nЭто озеро.")], documents)
    assert rows[0]["negatives"] == ["Это река."]


def test_a_text_that_occurs_twice_is_mined_once(run: Stage):
    documents = [document("Снег идёт."), document("Снег  идёт"), document("СНЕГ ИДЕТ")]
    rows, metrics = run([example("Что пьют?", "Чай.")], documents)
    assert rows[0]["negatives"] == ["Снег идёт."]
    assert metrics["corpus"] == 2


def test_explicit_negatives_stay_in_front_and_are_scored(run: Stage):
    examples = [example("Что пьют?", "Чай.", negatives=["Снег.", "Лес."], negative_scores=[9, 8])]
    rows, metrics = run(examples, [document("Дом."), document("снег")], negatives=3)
    assert rows[0]["negatives"] == ["снег", "Лес.", "Дом."]
    assert all(-1 <= score <= 1 for score in rows[0]["negative_scores"])
    assert (metrics["negatives_explicit"], metrics["negatives_mined"]) == (2, 1)


def test_an_explicit_negative_that_is_a_positive_of_the_query_is_dropped(run: Stage):
    examples = [
        example("Что пьют?", "Чай.", negatives=["Кофе!", "Снег."]),
        example("Что пьют?", "Кофе."),
    ]
    rows, _ = run(examples, [document("Дом.")])
    assert rows[0]["negatives"] == ["Снег.", "Дом."]


def test_more_explicit_negatives_than_wanted_are_all_kept(run: Stage):
    examples = [example("Что пьют?", "Чай.", negatives=["Снег.", "Лес."])]
    rows, _ = run(examples, [document("Дом.")], negatives=1)
    assert rows[0]["negatives"] == ["Снег.", "Лес."]


def test_metrics_tell_how_strict_the_cap_is(run: Stage, pico_texts: list[str]):
    examples = [example("Что стоит на столе?", pico_texts[0]), example("Где кошка?", pico_texts[3])]
    documents = [document(text) for text in pico_texts]
    _, metrics = run(examples, documents, max_positive_share=0.9, negatives=7, top_k=10)
    rates = metrics["removed_by_cap_share_at"]
    assert metrics["removed_by_cap_share"] == rates["0.90"]
    assert list(rates.values()) == sorted(rates.values(), reverse=True)
    assert metrics["candidates"] == 20
    assert metrics["mean_negative_score"] < metrics["mean_positive_score"]
    assert metrics["audit_ids"] == [row["id"] for row in examples]


def test_a_cap_that_removes_nearly_everything_is_warned_of(
    run: Stage, pico_texts: list[str], caplog: pytest.LogCaptureFixture
):
    documents = [document(text) for text in pico_texts]
    run([example("Что стоит?", pico_texts[0])], documents, max_positive_share=-100.0)
    assert "mine.max_positive_share -100.0 removes" in caplog.text


def test_rows_left_short_of_negatives_are_counted(run: Stage):
    examples = [example("Что пьют?", "Чай."), example("Где?", "Там.", negatives=["Снег.", "Лес."])]
    _, metrics = run(examples, [document("Чай!")], negatives=2)
    assert (metrics["short_share"], metrics["rows_without_negatives"]) == (0.5, 0)


def test_other_sources_are_left_out_and_every_other_column_is_kept(run: Stage):
    examples = [example("Что пьют?", "Чай."), example("О чём?", "О том.", source="titles")]
    rows, _ = run(examples, [document("Дом.")])
    filled = ("negatives", "negative_scores", "positive_scores")
    assert rows == [examples[0] | {key: rows[0][key] for key in filled}]


def test_positives_are_scored_by_the_same_model(
    run: Stage, pico_folder: Path, pico_texts: list[str]
):
    """Soft labels need the positive's score beside those of the negatives."""
    examples = [
        example("Что стоит на столе?", pico_texts[0], pico_texts[4]),
        example("Где кошка?", pico_texts[3]),
    ]
    rows, _ = run(examples, [document(text) for text in pico_texts])
    encoder = Encoder.load(pico_folder)
    prompt = query_prompt(load_params(PROFILE).prompts, "retrieval")
    for row in rows:
        query = encoder.encode([row["query"]], prompt=prompt, batch_tokens=100).astype(np.float64)
        positives = encoder.encode(row["positives"], batch_tokens=100).astype(np.float64)
        expected = (positives @ query[0]).tolist()
        assert row["positive_scores"] == pytest.approx(expected, abs=1e-6)


def test_equal_inputs_give_equal_bytes(run: Stage, pico_texts: list[str]):
    examples = [example("Что стоит?", pico_texts[0]), example("Где кошка?", pico_texts[3])]
    contents = []
    for _ in range(2):
        run(examples, [document(text) for text in pico_texts])
        files = sorted(path for path in Path("artifacts/mine").rglob("*") if path.is_file())
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_a_source_without_rows_is_named(run: Stage):
    with pytest.raises(StageError, match=r"mine.sources \['titles'\] have no examples"):
        run([example("Что?", "То.")], [], sources=["questions", "titles"])


def test_a_missing_model_is_told(run: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "copytree", lambda *_: None)
    with pytest.raises(StageError, match="mining with artifacts/pretrain/model failed"):
        run([example("Что?", "То.")], [])


def test_a_bounded_corpus_still_holds_every_positive(run: Stage, pico_texts: list[str]):
    examples = [example(f"вопрос {number}", text) for number, text in enumerate(pico_texts[:4])]
    documents = [document(text) for text in pico_texts]
    rows, _ = run(examples, documents, max_documents=2, negatives=50)
    mined = {text for row in rows for text in row["negatives"]}
    assert mined >= set(pico_texts[:4]) - {rows[0]["positives"][0]}
    assert len(mined) <= 4 + 2
    again, _ = run(examples, documents, max_documents=2, negatives=50)
    assert again == rows
