"""outside.json: what stages read from where neither DVC nor git looks."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.plan.dag import changed, open_repo
from flows.results import reads_outside
from tasks import probe
from tasks.contract.stage import StageError, read_json
from tasks.outside import fingerprint, recorded, refresh
from tasks.params.load import Params, load_params

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "infra/profiles/sample.yaml"
STAGES = {
    *("ingest", "synthesize", "teach", "backbone", "baseline", "pretrain", "finetune", "multitask")
}
GUIDE = {
    "query_prompt": None, "document_prompt": None,
    "margin": 0.0, "kind": "absolute", "in_batch": True, "explicit": False,
}  # fmt: skip


def params_of(folder: Path) -> Params:
    """A table, a decoder and a guide that lie beside the checkout."""
    content: dict[str, Any] = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    content["ingest"]["sources"]["titles"]["path"] = f"{folder}/tables/*.jsonl"
    content["backbone"] |= {"source": f"{folder}/decoder", "scratch": None}
    content["finetune"]["training"]["guide"] = GUIDE | {"checkpoint": f"{folder}/guide"}
    return Params.model_validate(content)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    for name in ("tables/a.jsonl", "decoder/model.safetensors", "guide/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("first")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    return folder


def test_a_profile_without_anything_outside_records_nothing(elsewhere: Path) -> None:
    refresh(load_params(SAMPLE))
    assert read_json(Path("outside.json")) == read_json(ROOT / "outside.json")
    assert read_json(Path("outside.json")) == {stage: {} for stage in STAGES}
    assert not reads_outside(load_params(SAMPLE))
    refresh(params_of(elsewhere))
    assert reads_outside(load_params(SAMPLE)), "what another profile left is to be taken out"


# of pygtrie, inside DVC
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_new_weights_in_a_folder_are_seen_by_dvc_and_by_their_stage_alone(
    elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stages = {
        name: {"cmd": f"echo x > {name}", "params": [{"outside.json": [name]}], "outs": [name]}
        for name in ("ingest", "backbone", "pretrain", "finetune")
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    params = params_of(elsewhere)
    refresh(params)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    with open_repo() as repo:
        repo.reproduce()  # pyright: ignore[reportCallIssue]  # of a decorator in DVC
    refresh(params)
    assert changed() == {}, "pretrain, which reads nothing from outside, among them"
    (elsewhere / "decoder/model.safetensors").write_text("other")
    (elsewhere / "guide/README.md").write_text("no reader opens it")
    refresh(params)
    assert changed().keys() == {"backbone"}
    assert f"backbone reads other files than before: {elsewhere}/decoder" in caplog.text


def test_a_stage_started_by_hand_refuses_what_is_not_recorded(elsewhere: Path) -> None:
    """DVC would write into dvc.lock that it had read what is recorded."""
    ran: list[Params] = []
    params = params_of(elsewhere)
    body = recorded("ingest", ran.append)
    with pytest.raises(StageError, match=r"\*\.jsonl differs .*python -m tasks\.outside, then"):
        body(params)
    refresh(params)
    body(params)
    (elsewhere / "tables/b.jsonl").write_text("one more")
    with pytest.raises(StageError, match=r"\*\.jsonl differs from"):
        body(params)
    assert len(ran) == 1


def test_make_check_says_what_would_run_again(elsewhere: Path) -> None:
    params = params_of(elsewhere)
    level, text = next(probe.outside(params))
    assert (level, text.split(" would")[0]) == ("warning", "ingest, backbone, finetune")
    refresh(params)
    assert next(probe.outside(params))[0] == "ok"


def test_a_fingerprint_is_of_names_and_contents(elsewhere: Path) -> None:
    folder = elsewhere / "guide"
    before = fingerprint(str(folder), None)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert fingerprint(str(folder), None) != before
    (folder / "weights.safetensors").rename(folder / "model.safetensors")
    assert fingerprint(str(folder), None) == before
    folder.rename(elsewhere / "deeper")
    with pytest.raises(StageError, match=r"nothing is at .*guide: correct the path"):
        fingerprint(str(folder), None)


def test_every_stage_that_reads_outside_names_its_key_in_dvc_yaml() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    named: dict[str, list[str]] = {}
    for name, entry in stages.items():
        for each in entry.get("do", entry)["params"]:
            if isinstance(each, dict) and "outside.json" in each:
                named[name] = each["outside.json"]
    assert named == {name: [name] for name in STAGES}
    assert load_params(SAMPLE).outside().keys() == STAGES


def test_a_path_with_brackets_is_the_file_of_that_name(elsewhere: Path) -> None:
    (elsewhere / "tables [1].jsonl").write_text("first")
    first = fingerprint(f"{elsewhere}/tables [1].jsonl", None)
    (elsewhere / "tables [1].jsonl").write_text("second")
    assert fingerprint(f"{elsewhere}/tables [1].jsonl", None) != first


def test_a_source_above_the_corpus_is_outside(elsewhere: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    Path("data/train").mkdir(parents=True)
    content["ingest"]["sources"]["titles"]["path"] = "../../../elsewhere/tables/*.jsonl"
    params = Params.model_validate(content)
    refresh(params)
    [found] = read_json(Path("outside.json"))["ingest"].items()
    assert found[0] == f"{params.data.corpus}/../../../elsewhere/tables/*.jsonl"
