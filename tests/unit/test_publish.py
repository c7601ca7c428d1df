"""Publication and champion.json: what a run gives to the next one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.champion import refresh_champion
from tasks.contract.stage import StageError, read_json
from tasks.gate import judge_candidate
from tasks.params.load import Params, load_params
from tasks.publish import PROMPTS_FILE, describe_run, publish
from tasks.store.registry import Registry, fingerprint_folder
from tasks.store.storage import open_storage
from tests.unit.file_limit import files_up_to

ROOT = Path(__file__).parents[2]
MODEL = Path("artifacts/merge/model")


def write(path: str, content: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))


def train(weights: str, score: float) -> None:
    """What a run leaves behind before the gate."""
    MODEL.mkdir(parents=True, exist_ok=True)
    (MODEL / "model.safetensors").write_text(weights)
    write(str(MODEL / PROMPTS_FILE), {"prompts": {"query": "вопрос: ", "document": ""}})
    for rung in ("random", "backbone", "final"):
        mean = score if rung == "final" else 0.1
        write(f"artifacts/evaluate/{rung}/scores.json", {"tasks": {"STS": mean}, "mean": mean})


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params of a working folder in which a model with the score 0.5 was trained."""
    monkeypatch.chdir(tmp_path)
    train("first", 0.5)
    Path("artifacts/report").mkdir()
    Path("artifacts/report/model_card.md").write_text("# Samovar")
    Path("artifacts/report/index.html").write_text("<html></html>")
    write("artifacts/backbone/base/base.json", {"notices": ["NOTICE.md"]})
    Path("artifacts/backbone/base/NOTICE.md").write_text("Under the terms of X")
    loaded = load_params(ROOT / "infra/profiles/pico.yaml")
    rules = loaded.gate.model_copy(update={"min_mean_gain": 0.0, "max_task_loss": 0.05})
    return loaded.model_copy(update={"gate": rules})


@pytest.fixture
def registry(params: Params) -> Registry:
    storage = open_storage(params.store.url, params.store.endpoint_url)
    return Registry(storage, params.publish.name)


def run(params: Params) -> dict[str, Any]:
    refresh_champion(params)
    judge_candidate(params)
    publish(params)
    return read_json(Path(".samovar/published.json"))


def test_a_passed_model_is_published_with_its_card_and_report(
    params: Params, registry: Registry
) -> None:
    result = run(params)
    (version,) = registry.versions()
    assert result == {
        "version": version.version,
        "is_new": True,
        "address": registry.address(version.version),
        "mean": 0.5,
        "scores": {"STS": 0.5},
    }
    names = [file.path for file in version.files]
    assert names == [
        "NOTICE.md",
        "README.md",
        PROMPTS_FILE,
        "model.safetensors",
        "report/index.html",
    ]
    assert version.fingerprint == fingerprint_folder(MODEL)
    assert registry.verify(version.version) == []


def test_the_published_prompts_have_the_names_of_mteb_beside_ours(
    params: Params, registry: Registry
) -> None:
    judged = MODEL / PROMPTS_FILE
    own = {"SampleSTS": "Найди похожее"}
    evaluate = params.evaluate.model_copy(update={"task_prompts": own})
    run(params.model_copy(update={"evaluate": evaluate}))
    (version,) = registry.versions()
    prompts = read_json(Path(registry.address(version.version)) / PROMPTS_FILE)["prompts"]
    assert prompts["query"] == "вопрос: "
    assert prompts["Retrieval"] == "вопрос: "
    assert prompts["Retrieval-document"] == prompts["document"] == ""
    assert prompts["SampleSTS"] == "Найди похожее: "
    assert read_json(judged) == {"prompts": {"query": "вопрос: ", "document": ""}}
    assert registry.verify(version.version) == []


def test_publishing_twice_stores_one_version(params: Params, registry: Registry) -> None:
    run(params)
    assert run(params)["is_new"] is False
    assert len(registry.versions()) == 1


def test_a_rejected_model_is_not_published_and_the_reason_is_kept(
    params: Params, registry: Registry
) -> None:
    run(params)
    train("second", 0.3)
    result = run(params)
    assert result["version"] is None
    assert result["reasons"][0].startswith("The mean changed by -0.2000 against v0001-")
    assert len(registry.versions()) == 1


def test_without_a_decision_nothing_is_published(params: Params, registry: Registry) -> None:
    with pytest.raises(StageError, match=r"decision\.json does not exist: run the stage"):
        publish(params)
    assert registry.versions() == []


def test_a_model_that_changed_after_the_decision_is_refused(
    params: Params, registry: Registry
) -> None:
    refresh_champion(params)
    judge_candidate(params)
    train("changed", 0.5)
    with pytest.raises(StageError, match="is not the model that the gate judged"):
        publish(params)
    assert registry.versions() == []


def test_a_full_store_is_named_and_the_next_run_publishes(
    params: Params, registry: Registry
) -> None:
    train("weights" * 100_000, 0.5)
    refresh_champion(params)
    judge_candidate(params)
    with (
        pytest.raises(
            StageError, match=r"the disk is full, copying .*/model\.safetensors .*free space"
        ),
        files_up_to(100_000),
    ):
        publish(params)
    assert registry.versions() == []
    publish(params)
    [version] = registry.versions()
    assert registry.verify(version.version) == []


def test_a_missing_report_is_an_error(params: Params) -> None:
    Path("artifacts/report/model_card.md").unlink()
    with pytest.raises(StageError, match=r"model_card\.md does not exist: run the stage report"):
        run(params)


def test_there_is_no_champion_before_the_first_publication(params: Params) -> None:
    refresh_champion(params)
    empty = {"version": None, "fingerprint": None, "mean": None, "scores": {}}
    assert read_json(Path("champion.json")) == empty


def test_the_candidate_is_not_its_own_champion(params: Params) -> None:
    """Otherwise the gate would judge a published model against itself on the next run."""
    run(params)
    before = Path("champion.json").stat().st_mtime_ns
    refresh_champion(params)
    assert read_json(Path("champion.json"))["version"] is None
    assert Path("champion.json").stat().st_mtime_ns == before


def test_the_next_candidate_meets_the_published_model(params: Params, registry: Registry) -> None:
    run(params)
    train("second", 0.7)
    refresh_champion(params)
    (version,) = registry.versions()
    assert read_json(Path("champion.json")) == {
        "version": version.version,
        "fingerprint": version.fingerprint,
        "mean": 0.5,
        "scores": {"STS": 0.5},
    }


def test_before_the_first_run_the_newest_version_is_the_champion(
    params: Params, registry: Registry
) -> None:
    run(params)
    Path("artifacts").rename("elsewhere")
    refresh_champion(params)
    assert read_json(Path("champion.json"))["version"] == registry.versions()[-1].version


def test_the_run_is_described_without_git_and_dvc(params: Params) -> None:
    Path("params.yaml").write_text("a: 1\n")
    assert describe_run() == {
        "params_sha256": "37b128c59f1f5097f73f82691cb519f1f568667faab5ced1b4ab979d36837eae",
        "dvc_lock_sha256": None,
        "git_commit": None,
    }
