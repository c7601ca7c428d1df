"""infra.mirror_benchmark, with a local folder in place of the hub."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mteb.abstasks.retrieval import AbsTaskRetrieval

from infra.mirror_benchmark import benchmark_tasks, mirror_task
from tasks.contract.stage import StageError
from tasks.evaluate.benchmark import local_task


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` caches a local folder by its name: a test must not see that of another."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_hub(folder, **configs):
    """A data set as the hub lays it out: shards under data/, configs in the README."""
    entries = []
    (folder / "data").mkdir(parents=True)
    for config, splits in configs.items():
        files = []
        for split, columns in splits.items():
            name = f"data/{config}-{split}-00000-of-00001.parquet"
            pq.write_table(pa.table(columns), folder / name)
            files.append({"split": split, "path": name})
        entries.append({"config_name": config, "data_files": files})
    front = yaml.safe_dump({"configs": entries})
    (folder / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    return folder


def task_on(hub, official):
    """The official task, whose data set lies in `hub`."""
    return local_task(hub, official, 42)


def tables(folder):
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pydict()
        for path in sorted(folder.rglob("*.parquet"))
    }


ROWS = {"text": ["Тула", "Омск", "Псков"], "label": [0, 1, 0]}


def test_a_classification_is_mirrored_with_its_training_split(tmp_path):
    hub = write_hub(tmp_path / "hub", default={"train": ROWS, "test": ROWS, "extra": ROWS})
    mirror_task(task_on(hub, "KinopoiskClassification"), tmp_path / "Mirror")
    assert tables(tmp_path / "Mirror") == {
        "default/test.parquet": ROWS,
        "default/train.parquet": ROWS,
    }


def test_a_mirrored_retrieval_loads_as_the_original(tmp_path):
    corpus = {"_id": ["d0", "d1"], "title": ["", "Омск"], "text": ["Тула", "Сибирь"]}
    queries = {"_id": ["q0"], "text": ["Где пекут пряники?"]}
    qrels = {"query-id": ["q0"], "corpus-id": ["d0"], "score": [1]}
    hub = write_hub(
        tmp_path / "hub",
        corpus={"test": corpus},
        queries={"test": queries},
        default={"test": qrels},
    )
    original = task_on(hub, "RiaNewsRetrieval")
    mirror_task(original, tmp_path / "Mirror")
    copy = local_task(tmp_path / "Mirror", "RiaNewsRetrieval", 42)
    loaded = []
    for task in (original, copy):
        assert isinstance(task, AbsTaskRetrieval)
        task.load_data()
        data = task.dataset["default"]["test"]
        loaded.append((data["corpus"][:], data["queries"][:], data["relevant_docs"]))
    assert loaded[0] == loaded[1]


def test_only_the_languages_of_the_benchmark_are_mirrored(tmp_path):
    rows = {"text": ["а", "б"], "label": ["x", "y"]}
    splits = {"train": rows, "validation": rows, "test": rows}
    hub = write_hub(tmp_path / "hub", ru=splits, en=splits)
    task = task_on(hub, "MassiveIntentClassification")
    task.hf_subsets = ["ru"]
    mirror_task(task, tmp_path / "Mirror")
    assert {path.name for path in (tmp_path / "Mirror").iterdir()} == {"README.md", "ru"}


def test_a_language_that_is_no_config_is_cut_out_by_its_column(tmp_path):
    rows = {
        "lang": ["ru", "en"],
        "sentence1": ["Тула", "Rome"],
        "sentence2": ["Омск", "Bern"],
        "score": [1.0, 2.0],
    }
    hub = write_hub(tmp_path / "hub", default={"test": rows}, ru={"test": rows})
    task = task_on(hub, "STS22")
    (hub / "README.md").write_text(
        (hub / "README.md").read_text("utf-8").replace("config_name: ru", "config_name: all"),
        "utf-8",
    )
    mirror_task(task, tmp_path / "Mirror")
    assert tables(tmp_path / "Mirror")["ru/test.parquet"]["lang"] == ["ru"]


def test_a_mirrored_revision_is_not_fetched_again(tmp_path):
    hub = write_hub(tmp_path / "hub", default={"train": ROWS, "test": ROWS})
    task = task_on(hub, "KinopoiskClassification")
    mirror_task(task, tmp_path / "Mirror")
    before = (tmp_path / "Mirror").stat().st_ino
    mirror_task(task, tmp_path / "Mirror")
    assert (tmp_path / "Mirror").stat().st_ino == before


def test_a_missing_split_is_an_error_and_leaves_nothing(tmp_path):
    hub = write_hub(tmp_path / "hub", default={"train": ROWS, "test": ROWS})
    task = task_on(hub, "KinopoiskClassification")
    task.train_split = "training"
    with pytest.raises(StageError, match=r"has the splits \['train', 'test'\], not \['training'\]"):
        mirror_task(task, tmp_path / "Mirror")
    assert not (tmp_path / "Mirror").exists()


def test_an_unknown_benchmark_suggests_close_names():
    with pytest.raises(StageError, match=r"MTEB\(rus, v1.1\)"):
        benchmark_tasks("MTEB(rus, v1.2)")


def test_the_russian_benchmark_has_its_23_tasks_in_russian():
    tasks = benchmark_tasks("MTEB(rus, v1.1)")
    assert len(tasks) == 23
    assert {subset for task in tasks for subset in task.hf_subsets} == {"default", "ru"}
