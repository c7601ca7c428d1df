"""Stage evaluate: mteb over local folders."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from mteb.types import PromptType
from scipy.stats import spearmanr

from infra.sample.generate import generate
from tasks.baseline.random_vectors import RandomVectors
from tasks.contract.stage import StageError, read_json
from tasks.evaluate.benchmark import _check_readme, local_task, official_task
from tasks.evaluate.eager import EagerDataset
from tasks.evaluate.embedder import Embedder
from tasks.evaluate.evaluation import evaluate_rung, run_task
from tasks.evaluate.instructions import Instructions
from tasks.evaluate.rungs import open_rung
from tasks.evaluate.scores import task_score
from tasks.evaluate.threads import use_threads
from tasks.machine.compute import Machine
from tasks.params.load import load_params

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "infra" / "profiles" / "sample.yaml"
CITIES = ["Тула", "Казань", "Омск", "Псков", "Рязань", "Тверь"]


def write_task(folder, **configs):
    """A task folder in the layout of the hub: <config>/<split>.parquet and a README."""
    entries = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        for split, columns in splits.items():
            pq.write_table(pa.table(columns), folder / config / f"{split}.parquet")
        files = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
        entries.append({"config_name": config, "data_files": files})
    front = yaml.safe_dump({"configs": entries})
    (folder / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    return folder


def write_sts(folder, split="test"):
    columns = {
        "sentence1": [f"{city} стоит на реке." for city in CITIES],
        "sentence2": [f"{city} — город." for city in [*CITIES[3:], *CITIES[:3]]],
        "score": [0.0, 5.0, 1.0, 4.0, 2.0, 3.0],
    }
    return write_task(folder, default={split: columns})


def write_retrieval(folder):
    return write_task(
        folder,
        corpus={
            "test": {
                "_id": [f"d{number}" for number in range(6)],
                "title": ["", *CITIES[1:]],
                "text": [f"{city} известна давно." for city in CITIES],
            }
        },
        queries={
            "test": {
                "_id": [f"q{number}" for number in range(6)],
                "text": [f"Чем известна {city}?" for city in CITIES],
            }
        },
        default={
            "test": {
                "query-id": [f"q{number}" for number in range(6)],
                "corpus-id": [f"d{number}" for number in range(6)],
                "score": [1] * 6,
            }
        },
    )


def write_classification(folder):
    rows = {
        "text": [f"{city}, улица {number}" for number in range(12) for city in CITIES[:2]],
        "label": [0, 1] * 12,
    }
    return write_task(folder, default={"train": rows, "test": rows})


class RecordingRung:
    """Random vectors that remember what they were asked to encode."""

    def __init__(self):
        self.vectors = RandomVectors(dimension=32, seed=1)
        self.asked = []

    def encode(self, texts, prefix, *, is_document):  # noqa: ARG002 - protocol
        self.asked += [(prefix, text) for text in texts]
        return self.vectors.encode([prefix + text for text in texts])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` caches a local folder by its name: a test must not see that of another."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def params(tmp_path):
    loaded = load_params(PROFILE)
    tasks = {"Retrieval": "RiaNewsRetrieval", "Sts": "RuSTSBenchmarkSTS", "Cities": CLASSIFICATION}
    update = {
        "data": loaded.data.model_copy(update={"benchmark": str(tmp_path / "benchmark")}),
        "evaluate": loaded.evaluate.model_copy(update={"tasks": tasks}),
        "report": loaded.report.model_copy(
            update={"example_task": "Retrieval", "example_queries": 4}
        ),
    }
    return loaded.model_copy(update=update)


CLASSIFICATION = "KinopoiskClassification"


@pytest.fixture(scope="module")
def sample_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled benchmark, generated."""
    folder = tmp_path_factory.mktemp("sample")
    generate(folder)
    return folder / "benchmark"


@pytest.mark.parametrize("name", load_params(PROFILE).evaluate.tasks)
def test_every_bundled_task_is_scored_by_mteb(sample_benchmark: Path, name: str) -> None:
    loaded = load_params(PROFILE)
    task = local_task(sample_benchmark / name, loaded.evaluate.tasks[name], seed=1)
    embedder = Embedder(RecordingRung(), Instructions.of(loaded), threads=1)
    score = task_score(run_task(task, embedder), task.metadata.type)
    assert task.metadata.name == name
    assert -0.1 < score.main_score < 0.7  # random vectors: chance
    assert embedder.encoded_texts >= 150


@pytest.fixture
def run_folder(tmp_path, monkeypatch, pico_folder):
    """A working folder with a benchmark of three tasks and a model on the rung `backbone`."""
    monkeypatch.chdir(tmp_path)
    write_retrieval(tmp_path / "benchmark" / "Retrieval")
    write_sts(tmp_path / "benchmark" / "Sts", split="validation")
    write_classification(tmp_path / "benchmark" / "Cities")
    (tmp_path / "artifacts" / "backbone").mkdir(parents=True)
    (tmp_path / "artifacts" / "backbone" / "model").symlink_to(pico_folder)
    return tmp_path


@pytest.fixture
def instructions(params):
    return Instructions.of(params)


def embed(rung, instructions):
    return Embedder(rung, instructions, threads=1)


def test_a_folder_of_another_name_takes_neither_name_nor_sampling_of_the_official_task(tmp_path):
    task = local_task(write_classification(tmp_path / "Proxy"), "RuReviewsClassification", 42)
    official = type(official_task("RuReviewsClassification"))
    assert task.metadata.name == "Proxy"
    assert task.metadata.dataset["path"] == str(tmp_path / "Proxy")
    assert isinstance(task, official)
    assert type(task).dataset_transform is not official.dataset_transform


def test_a_folder_of_the_official_name_keeps_the_official_sampling(tmp_path):
    name = "RuReviewsClassification"
    task = local_task(write_classification(tmp_path / name), name, 42)
    assert type(task).dataset_transform is type(official_task(name)).dataset_transform


def test_a_broken_description_beside_the_tables_is_named(tmp_path):
    folder = write_sts(tmp_path / "Sts")
    infos = {"default": {"description": "", "features": {"sentence1": {"dtype": "string"}}}}
    (folder / "dataset_infos.json").write_text(json.dumps(infos), encoding="utf-8")
    with pytest.raises(StageError, match=r"dataset_infos\.json does not describe .*: remove it"):
        local_task(folder, "RuSTSBenchmarkSTS", 42)


def test_an_unknown_official_task_suggests_close_names(tmp_path):
    with pytest.raises(StageError, match="RuSTSBenchmarkSTS"):
        local_task(write_sts(tmp_path / "Sts"), "RuSTSBenchmark", 42)


def test_a_missing_folder_names_its_neighbours(tmp_path):
    write_sts(tmp_path / "Sts")
    with pytest.raises(StageError, match=r"Stz does not exist.*\['Sts'\]"):
        local_task(tmp_path / "Stz", "RuSTSBenchmarkSTS", 42)


@pytest.mark.parametrize("outside", ["../other.parquet", "/etc/x", "http://127.0.0.1:9/x.parquet"])
def test_a_readme_that_names_data_elsewhere_is_refused(tmp_path, outside):
    folder = write_sts(tmp_path / "STS")
    for files in (outside, [outside], [{"split": "test", "path": ["a.parquet", outside]}]):
        front = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
        with pytest.raises(StageError, match=r"README\.md names .*expected a path relative"):
            local_task(folder, "RuSTSBenchmarkSTS", 42)
    _check_readme(write_sts(tmp_path / "Own") / "README.md")
    entry = {"config_name": "default", "data_dir": ".", "data_files": "./default/*.parquet"}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [entry]})}---\n")
    _check_readme(folder / "README.md")


def test_an_official_task_without_its_splits_is_refused(tmp_path):
    folder = write_sts(tmp_path / "TERRa")
    with pytest.raises(StageError, match=r"\['test'\], but TERRa needs \['dev'\]"):
        local_task(folder, "TERRa", 42)


def test_a_classification_without_training_rows_is_refused(tmp_path):
    folder = write_task(tmp_path / "Cities", default={"test": {"text": ["а"], "label": [0]}})
    with pytest.raises(StageError, match=r"needs \['test', 'train'\]"):
        local_task(folder, CLASSIFICATION, 42)


def test_a_stand_in_may_have_its_texts_under_test(tmp_path):
    task = local_task(write_sts(tmp_path / "Pairs"), "TERRa", 42)
    assert task.eval_splits == ["test"]


def test_of_a_multilingual_task_the_languages_of_the_folder_are_kept(tmp_path):
    rows = {"text": ["а", "б"], "label": ["x", "y"], "lang": ["ru", "ru"]}
    folder = write_task(tmp_path / "MassiveIntentClassification", ru={"train": rows, "test": rows})
    assert local_task(folder, "MassiveIntentClassification", 42).hf_subsets == ["ru"]


def test_sts_is_the_rank_correlation_of_the_cosines(tmp_path, instructions):
    rung = RecordingRung()
    task = local_task(write_sts(tmp_path / "Sts"), "RuSTSBenchmarkSTS", 42)
    result = run_task(task, embed(rung, instructions))
    prefix = instructions.prefix(task.metadata, None)
    rows = pq.read_table(tmp_path / "Sts" / "default" / "test.parquet").to_pydict()
    first, second = (
        rung.vectors.encode([prefix + text for text in rows[column]])
        for column in ("sentence1", "sentence2")
    )
    expected = spearmanr((first * second).sum(axis=1), rows["score"]).statistic
    assert result.get_score() == pytest.approx(expected)


def test_retrieval_is_the_ndcg_of_the_ranking(tmp_path, instructions):
    rung = RecordingRung()
    task = local_task(write_retrieval(tmp_path / "Retrieval"), "RiaNewsRetrieval", 42)
    result = run_task(task, embed(rung, instructions))
    prefix = instructions.prefix(task.metadata, PromptType.query)
    titles = ["", *[f"{city} " for city in CITIES[1:]]]
    documents = rung.vectors.encode(
        [f"{title}{city} известна давно." for title, city in zip(titles, CITIES, strict=True)]
    )
    queries = rung.vectors.encode([f"{prefix}Чем известна {city}?" for city in CITIES])
    scores = queries @ documents.T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    assert result.get_score() == pytest.approx(np.mean(1 / np.log2(ranks + 2)), abs=1e-5)


def test_documents_stay_bare_and_queries_carry_the_instruction(tmp_path, instructions):
    rung = RecordingRung()
    task = local_task(write_retrieval(tmp_path / "Retrieval"), "RiaNewsRetrieval", 42)
    run_task(task, embed(rung, instructions))
    prefix = "вопрос: "
    assert {("Чем" in text, asked) for asked, text in rung.asked} == {(True, prefix), (False, "")}


def test_a_task_of_its_own_instruction_does_not_take_that_of_its_type(tmp_path, params):
    evaluate = params.evaluate.model_copy(update={"task_prompts": {"Cities": "Определи город"}})
    instructions = Instructions.of(params.model_copy(update={"evaluate": evaluate}))
    task = local_task(write_classification(tmp_path / "Cities"), CLASSIFICATION, 42)
    assert instructions.prefix(task.metadata, None) == "Определи город: "


def test_an_empty_instruction_leaves_the_texts_bare(tmp_path, params):
    evaluate = params.evaluate.model_copy(update={"task_prompts": {"Cities": ""}})
    instructions = Instructions.of(params.model_copy(update={"evaluate": evaluate}))
    task = local_task(write_classification(tmp_path / "Cities"), CLASSIFICATION, 42)
    assert instructions.prefix(task.metadata, None) == ""


def test_an_instruction_for_a_task_that_is_not_evaluated_is_an_error(params):
    evaluate = params.evaluate.model_copy(update={"task_prompts": {"Citties": "?"}})
    with pytest.raises(StageError, match="Citties"):
        Instructions.of(params.model_copy(update={"evaluate": evaluate}))


def test_a_text_is_encoded_once_per_instruction(tmp_path, instructions):
    rung = RecordingRung()
    task = local_task(write_classification(tmp_path / "Cities"), CLASSIFICATION, 42)
    run_task(task, embed(rung, instructions))
    assert len(rung.asked) == len(set(rung.asked)) == 24


def test_an_eager_data_set_gives_what_a_plain_one_gives():
    rows = {"text": ["а", "б", "в"], "label": [2, 0, 1]}
    plain = Dataset.from_dict(rows)
    eager = EagerDataset(plain.data.table)
    assert eager["label"] == [2, 0, 1]
    assert eager[1] == plain[1]
    assert eager.select([2, 0])["text"][:] == ["в", "а"]
    assert isinstance(eager.select_columns(["label"])["label"], list)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_rung_gives_the_same_bytes_again(run_folder, params):
    output = run_folder / "artifacts" / "evaluate" / "backbone"
    runs = []
    for _ in range(2):
        evaluate_rung(params, "backbone")
        runs.append({path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()})
    assert runs[0] == runs[1]
    assert set(runs[0]) == {
        "Cities.json",
        "Retrieval.json",
        "Sts.json",
        "metrics.json",
        "retrieved.json",
        "scores.json",
    }


def test_the_totals_are_means_over_tasks_and_over_types(run_folder, params):
    evaluate_rung(params, "backbone")
    scores = read_json(run_folder / "artifacts/evaluate/backbone/scores.json")
    metrics = read_json(run_folder / "artifacts/evaluate/backbone/metrics.json")
    assert scores["mean"] == pytest.approx(np.mean(list(scores["tasks"].values())), abs=1e-6)
    assert scores["mean_by_type"] == pytest.approx(
        np.mean(list(scores["by_type"].values())), abs=1e-6
    )
    assert scores["types"] == {"Retrieval": "Retrieval", "Sts": "STS", "Cities": "Classification"}
    assert metrics == {**scores["tasks"], "mean": scores["mean"]}


def test_a_result_holds_no_time_and_no_path(run_folder, params):
    evaluate_rung(params, "backbone")
    text = (run_folder / "artifacts/evaluate/backbone/results/Sts.json").read_text("utf-8")
    assert "evaluation_time" not in text
    assert str(run_folder) not in text
    assert json.loads(text)["scores"]["validation"][0]["main_score"] is not None


def test_the_first_queries_are_kept_with_their_best_passages(run_folder, params):
    evaluate_rung(params, "backbone")
    kept = read_json(run_folder / "artifacts/evaluate/backbone/retrieved.json")
    assert [query["id"] for query in kept["queries"]] == ["q0", "q1", "q2", "q3"]
    for query in kept["queries"]:
        scores = [passage["score"] for passage in query["passages"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        number = query["id"][1:]
        assert query["relevant"] == [f"d{number}"]
        assert all(
            (passage["id"] == f"d{number}") == (passage["relevance"] > 0)
            for passage in query["passages"]
        )


def test_an_unknown_rung_lists_the_known_ones(params):
    with pytest.raises(StageError, match=r"'bakcbone' is no rung: .*backbone"):
        evaluate_rung(params, "bakcbone")


def test_a_rung_without_a_model_is_an_error(tmp_path):
    machine = Machine(torch.device("cpu"), "fp32")
    with pytest.raises(StageError, match="holds no model"):
        open_rung(
            tmp_path,
            machine,
            attn_implementation="sdpa",
            batch_tokens=1000,
            max_length_tokens=64,
        )


@pytest.mark.slow
def test_the_command_runs_offline_without_sentence_transformers(run_folder, params):
    RandomVectors(dimension=16, seed=1).save(run_folder / "artifacts" / "baseline" / "random")
    (run_folder / "params.yaml").write_text(
        yaml.safe_dump(params.model_dump(mode="json", by_alias=True), allow_unicode=True), "utf-8"
    )
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tasks.evaluate", "random"],
        cwd=run_folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert not re.search(r"\| +sentence_transformers\b", result.stderr)
    assert "mean over 3 tasks" in result.stderr
    assert (run_folder / "artifacts/evaluate/random/scores.json").exists()
