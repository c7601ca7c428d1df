"""The stage merge on pico variants, and its scores against scikit-learn and SciPy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score
from sklearn.neighbors import NearestCentroid

from model.encoder.encoder import Encoder
from model.ranking import mean_ndcg, spearman
from tasks.contract.prompts import query_prompt
from tasks.contract.records import EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.merge import __main__ as stage
from tasks.merge.__main__ import merge
from tasks.merge.development import score_encoder, select_development
from tasks.merge.labelled import TEXTS_PER_CLASS
from tasks.params.load import Params, ParamsError, load_params
from tasks.store.registry import fingerprint_folder

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"
Run = Callable[..., dict[str, Any]]


def example(number: int, task: str = "retrieval", **others: Any) -> dict[str, Any]:
    row = {
        "id": f"{number:04d}",
        "task": task,
        "source": "questions",
        "lang": "ru",
        "query": f"Вопрос номер {number}?",
        "positives": [f"Ответ на него, номер {number}."],
        "negatives": [f"Неверный ответ {number}."],
        "negative_scores": None,
        "label": None,
        "score": None,
    }
    return row | others


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), EXAMPLE_SCHEMA)


def params_with(method: str) -> Params:
    params = load_params(PROFILE)
    positioning = params.merge.self_positioning.model_copy(
        update={"steps": 3, "batch_size": 4, "probe_examples": 16}
    )
    update = {"method": method, "self_positioning": positioning, "development_examples": 20}
    variant = params.multitask.variants["balanced"].model_copy(
        update={"sources": {"questions": 1.0}}
    )
    variants = {"balanced": variant, "retrieval": variant}
    return params.model_copy(
        update={
            "multitask": params.multitask.model_copy(update={"variants": variants}),
            "merge": params.merge.model_copy(update=update),
            "compute": params.compute.model_copy(update={"device": "cpu", "threads": 1}),
        }
    )


@pytest.fixture
def run(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the stage in a fresh folder with two variants of the pico encoder; its metrics."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pico_folder, "artifacts/finetune/model")
    for seed, name in enumerate(("balanced", "retrieval")):
        encoder = Encoder.load(pico_folder)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in encoder.backbone.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        encoder.save(Path(f"artifacts/multitask/{name}/model"))

    def run_stage(method: str, *development: dict[str, Any]) -> dict[str, Any]:
        shutil.rmtree("artifacts/ingest", ignore_errors=True)
        rows = development or tuple(example(number) for number in range(100, 110))
        training = table(*(example(number) for number in range(20)))
        write_table(training, Path("artifacts/ingest/examples"))
        write_table(table(*rows), Path("artifacts/ingest/development"))
        shutil.rmtree("artifacts/mine", ignore_errors=True)
        write_table(training, Path("artifacts/mine/examples"))
        merge(params_with(method))
        return json.loads(Path("artifacts/merge/metrics.json").read_text())

    return run_stage


def test_best_scores_every_candidate_and_keeps_the_highest_mean(run: Run):
    metrics = run("best")
    scores = {name: score["mean"] for name, score in metrics["scores"].items()}
    assert list(scores) == [
        "multitask-balanced",
        "multitask-retrieval",
        "self_positioning",
        "slerp",
        "uniform_soup",
    ]
    assert scores[metrics["chosen"]] == max(scores.values())
    assert sorted(path.name for path in Path("artifacts/merge").iterdir()) == [
        "metrics.json",
        "model",
    ]


def test_of_equal_scores_the_soup_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "score_encoder", lambda *_: {"mean": 0.5})
    assert run("best")["chosen"] == "uniform_soup"


def test_a_variant_may_win(run: Run, monkeypatch: pytest.MonkeyPatch):
    scores = iter([0.1, 0.4, 0.2, 0.9, 0.3])
    monkeypatch.setattr(stage, "score_encoder", lambda *_: {"mean": next(scores)})
    assert run("best")["chosen"] == "multitask-retrieval"
    merged, variant = (
        Path("artifacts") / name / "model" for name in ("merge", "multitask/retrieval")
    )
    assert fingerprint_folder(merged) == fingerprint_folder(variant)


def test_the_soup_holds_the_mean_of_the_variants(run: Run, pico_texts: list[str]):
    run("uniform_soup")
    states = [
        Encoder.load(Path("artifacts") / name / "model").state_dict()
        for name in ("multitask/balanced", "multitask/retrieval", "merge")
    ]
    for name, merged in states[2].items():
        assert torch.allclose(merged, (states[0][name] + states[1][name]) / 2, atol=1e-6)
    vectors = Encoder.load(Path("artifacts/merge/model")).encode(pico_texts, batch_tokens=1000)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_slerp_is_halfway_and_as_long_as_the_variants(run: Run):
    run("slerp")
    base, first, second, merged = (
        torch.cat([value.flatten().double() for value in encoder.state_dict().values()])
        for encoder in (
            Encoder.load(Path("artifacts") / name / "model")
            for name in ("finetune", "multitask/balanced", "multitask/retrieval", "merge")
        )
    )
    left, right, middle = first - base, second - base, merged - base
    torch.testing.assert_close(
        torch.cosine_similarity(middle, left, 0), torch.cosine_similarity(middle, right, 0),
        atol=1e-2, rtol=0,
    )  # fmt: skip
    angle = torch.acos(torch.cosine_similarity(left, right, 0))
    expected = (left + right) * torch.sin(angle / 2) / torch.sin(angle)
    torch.testing.assert_close(middle, expected, atol=1e-6, rtol=0)
    assert middle.norm() == pytest.approx(float((left.norm() + right.norm()) / 2), rel=1e-2)


def test_slerp_of_three_variants_is_refused(tmp_path: Path):
    content = yaml.safe_load(PROFILE.read_text("utf-8"))
    content["merge"]["method"] = "slerp"
    content["multitask"]["variants"]["third"] = content["multitask"]["variants"]["balanced"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    with pytest.raises(ParamsError, match=r"3 \(balanced, retrieval, third\): take uniform_soup"):
        load_params(tmp_path / "params.yaml")


def test_self_positioning_tells_its_scalars(run: Run):
    metrics = run("self_positioning")
    found = metrics["self_positioning"]
    assert set(found["weights"]) == set(found["coefficients"]) == {"balanced", "retrieval"}
    assert 0.9 < found["length"] < 1.1
    assert abs(metrics["task_vectors"]["cosines"]["balanced|retrieval"]) < 0.2


@pytest.mark.parametrize("method", ["best", "self_positioning"])
def test_equal_inputs_give_equal_bytes(run: Run, method: str):
    contents = []
    for _ in range(2):
        run(method)
        files = sorted(path for path in Path("artifacts/merge").rglob("*") if path.is_file())
        contents.append({path: path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_the_fingerprint_is_that_of_the_model_folder(run: Run):
    metrics = run("uniform_soup")
    assert metrics["fingerprint"] == fingerprint_folder(Path("artifacts/merge/model"))


def test_variants_of_other_configuration_are_refused(run: Run):
    path = Path("artifacts/multitask/retrieval/model/tokenizer.json")
    path.write_text(path.read_text().replace('"<pad>"', '"<fill>"'))
    with pytest.raises(StageError, match=r"differ in \['tokenizer.json'\]"):
        run("uniform_soup")


def test_a_missing_variant_is_told(run: Run):
    shutil.rmtree("artifacts/multitask/balanced")
    with pytest.raises(StageError, match="balanced/model holds no model"):
        run("uniform_soup")


def test_a_variant_that_was_not_trained_is_named(run: Run):
    shutil.rmtree("artifacts/multitask/balanced/model")
    shutil.copytree("artifacts/finetune/model", "artifacts/multitask/balanced/model")
    with pytest.raises(StageError, match=r"balanced/model equals .*finetune/model"):
        run("uniform_soup")


def test_best_without_development_rows_says_what_to_do(run: Run):
    with pytest.raises(StageError, match=r"raise ingest.development_fraction"):
        run("best", example(1, "classification", label="a"))


def test_a_failed_merge_leaves_nothing(run: Run):
    with pytest.raises(StageError):
        run("best", example(1, "classification", label="a"))
    assert not list(Path("artifacts").glob("*merge*"))


def test_ndcg_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, relevant = rng.random((30, 50)), rng.random((30, 50)) < 0.1
    relevant[:, 0] = True
    found = np.argsort(-scores, axis=1)[:, :10].tolist()
    wanted = [set(np.flatnonzero(row).tolist()) for row in relevant]
    expected = ndcg_score(relevant.astype(float), scores, k=10)
    assert mean_ndcg(found, wanted) == pytest.approx(expected)


def test_ndcg_of_a_positive_in_third_place_is_one_half():
    assert mean_ndcg([[7, 8, 9, 1]], [{9}]) == 0.5


def test_spearman_is_that_of_scipy_ties_included():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 6, 80).astype(float), rng.integers(0, 9, 80) / 10
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_spearman_of_a_constant_is_zero():
    assert spearman(np.ones(4), np.arange(4.0)) == 0.0


def select(development: pa.Table, training: pa.Table, max_examples: int = 100):
    return select_development(development, training, load_params(PROFILE).prompts, max_examples)


def test_positives_of_one_query_in_several_rows_are_all_relevant():
    other = example(2, query="вопрос, номер 1", positives=["Ещё ответ."])
    chosen = select(table(example(1), other), table())
    assert len(chosen.queries) == 1
    assert {chosen.documents[n] for n in chosen.relevant[0]} == {
        "Ответ на него, номер 1.",
        "Ещё ответ.",
    }


def test_training_positives_are_distractors_once_each():
    training = table(example(5), example(6), example(7, positives=["ответ на него номер 1"]))
    chosen = select(table(example(1)), training)
    assert len(chosen.documents) == 3
    assert chosen.relevant == [{0}]


def test_the_first_rows_by_id_are_taken():
    chosen = select(table(*(example(number) for number in (9, 3, 7, 1))), table(), 2)
    assert [text for _, text in chosen.queries] == ["Вопрос номер 1?", "Вопрос номер 3?"]


def test_scores_are_those_of_a_plain_ranking_and_correlation(
    pico_encoder: Encoder, pico_texts: list[str]
):
    """Queries of two tasks, so of two prompts, interleaved."""
    rows = [
        example(n, "nli" if n % 2 else "retrieval", query=text, positives=[pico_texts[n - 1]])
        for n, text in enumerate(pico_texts)
    ]
    graded = [
        example(50 + n, "sts", query=text, positives=[pico_texts[n - 2]], score=n / 12)
        for n, text in enumerate(pico_texts)
    ]
    chosen = select(table(*rows, *graded), table())
    scores = score_encoder(pico_encoder, chosen, 4096, "fp32")

    def encode(prompt: str, text: str) -> np.ndarray:
        return pico_encoder.encode([text], prompt=prompt, batch_tokens=4096)[0]

    documents = np.stack([encode("", text) for text in chosen.documents])
    ranking = np.stack([encode(*query) for query in chosen.queries]) @ documents.T
    relevant = np.zeros(ranking.shape)
    for row, wanted in enumerate(chosen.relevant):
        relevant[row, list(wanted)] = 1
    pairs = [
        float(encode(chosen.pair_prompts[0], left) @ encode(chosen.pair_prompts[1], right))
        for left, right in chosen.pairs
    ]
    assert scores["ndcg_at_10"] == pytest.approx(ndcg_score(relevant, ranking, k=10), abs=1e-6)
    assert scores["spearman"] == pytest.approx(spearmanr(pairs, chosen.grades).statistic, abs=0.01)
    assert scores["mean"] == pytest.approx((scores["ndcg_at_10"] + scores["spearman"]) / 2)


def labelled(number: int, label: str, source: str, text: str) -> dict[str, Any]:
    return example(number, "classification", query=text, label=label, source=source)


def test_accuracy_is_that_of_the_nearest_centroid(pico_encoder: Encoder, pico_texts: list[str]):
    """Two sources with other classes and sizes; a class that training lacks is not asked for."""
    training, development, expected = [], [], []
    for source, classes in (("topics", 3), ("tones", 2)):
        texts = [f"{text} {source} {n}" for n in range(5) for text in pico_texts]
        labels = [str(number % classes) for number in range(len(texts))]
        held_out = [f"{text}, {source}" for text in pico_texts]
        training += [
            labelled(n, label, source, text)
            for n, (label, text) in enumerate(zip(labels, texts, strict=True))
        ]
        development += [labelled(n, labels[n], source, text) for n, text in enumerate(held_out)]
        development.append(labelled(99, "unknown", source, "текст"))
        kept = [n for n in range(len(texts)) if labels[: n + 1].count(labels[n]) <= TEXTS_PER_CLASS]
        assert len(kept) < len(texts)
        prompt = query_prompt(load_params(PROFILE).prompts, "classification")
        known, asked = (
            pico_encoder.encode(own, prompt=prompt, batch_tokens=4096)
            for own in ([texts[n] for n in kept], held_out)
        )
        centres = NearestCentroid().fit(known, [labels[n] for n in kept])
        lengths = np.linalg.norm(centres.centroids_, axis=1, keepdims=True)
        found = ((asked @ (centres.centroids_ / lengths).T).argmax(axis=1)).astype(str)
        expected.append(np.mean(found == np.array(labels[: len(asked)])))
    chosen = select(table(*development), table(*training))
    assert [len(source.asked) for source in chosen.labelled] == [len(pico_texts)] * 2
    scores = score_encoder(pico_encoder, chosen, 4096, "fp32")
    assert scores["accuracy"] == scores["mean"] == pytest.approx(np.mean(expected))
    assert 0 < scores["accuracy"] < 1


def test_so_many_labelled_texts_are_asked_for_by_id():
    training = [labelled(n, "аб"[n % 2], "topics", f"текст {n}") for n in range(8)]
    development = [labelled(n, "аб"[n % 2], "topics", f"иное {n}") for n in (14, 12, 13, 11)]
    [source] = select(table(*development), table(*training), 2).labelled
    assert source.asked == [("иное 11", "б"), ("иное 12", "а")]
