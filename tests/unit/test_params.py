"""params.yaml: every profile loads, every fault is named with its key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.params import Params, ParamsError, load_params

PROFILES = sorted((Path(__file__).parents[2] / "infra" / "profiles").glob("*.yaml"))
SAMPLE = next(path for path in PROFILES if path.stem == "sample")

Change = Callable[[dict[str, Any]], object]


def load(tmp_path: Path, change: Change) -> Params:
    content = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_params(path)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    params = load_params(path)
    copy = tmp_path / "params.yaml"
    content = params.model_dump(by_alias=True, mode="json")
    copy.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert load_params(copy) == params


def test_params_yaml_is_a_copy_of_a_profile() -> None:
    content = (SAMPLE.parents[2] / "params.yaml").read_bytes()
    assert content in {path.read_bytes() for path in PROFILES}


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="does not exist: copy one of infra/profiles"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"a: [1, 2", b"\xff\xfe", b"a: b: c"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=r"params\.yaml is no valid YAML"):
        load_params(path)


@pytest.mark.parametrize("content", ["", "- 1", "text"])
def test_a_file_without_sections_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(ParamsError, match="must hold a mapping of sections, got"):
        load_params(path)


@pytest.mark.parametrize("section", sorted(yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))))
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    with pytest.raises(ParamsError, match=rf"  {section}: Field required"):
        load(tmp_path, lambda content: content.pop(section))


FROZEN = {"checkpoint": "backbone/model", "query_prompt": None, "document_prompt": None}
GUIDE = FROZEN | {"margin": 0.0, "kind": "absolute", "in_batch": True, "explicit": False}
FAULTS: dict[str, tuple[Change, str]] = {
    "unknown section": (lambda c: c.update(extra={}), r"  extra: .*unknown key"),
    "unknown key": (lambda c: c["prune"].update(fractoin=0.5), r"  prune\.fractoin: .*unknown key"),
    "missing key": (lambda c: c["prune"].pop("fraction"), r"  prune\.fraction: Field required"),
    "wrong type": (
        lambda c: c["pretrain"]["training"].update(max_steps="many"),
        r"  pretrain\.training\.max_steps: .*, got 'many'",
    ),
    "fraction of 1": (
        lambda c: c["prune"].update(fraction=1.0),
        r"  prune\.fraction: .*, got 1\.0",
    ),
    "batch of 0": (
        lambda c: c["pretrain"]["training"].update(batch_size=0),
        r"  pretrain\.training\.batch_size: .*, got 0",
    ),
    "not a number": (
        lambda c: c["pretrain"]["training"].update(temperature=float("nan")),
        r"  pretrain\.training\.temperature: ",
    ),
    "unknown choice": (
        lambda c: c["backbone"].update(attention="sideways"),
        r"  backbone\.attention: .*'bidirectional' or 'causal', got 'sideways'",
    ),
    "unknown source": (
        lambda c: c["pretrain"].update(sources={"nowhere": 1.0}),
        r"pretrain\.sources names \['nowhere'\]; known are",
    ),
    "unknown rung": (
        lambda c: c["gate"].update(candidate="nowhere"),
        r"\['nowhere'\] are no rungs",
    ),
    "no column for the label": (
        lambda c: c["ingest"]["sources"]["topics"]["fields"].pop("label"),
        r"ingest\.sources\.topics: .*must map the fields \['label'\]",
    ),
    "name of a source with a slash": (
        lambda c: c["ingest"]["sources"].update({"a/b": c["ingest"]["sources"]["topics"]}),
        r"'a/b' is no name",
    ),
    "no source": (lambda c: c["ingest"].update(sources={}), r"  ingest\.sources: "),
    "warm-up longer than the training": (
        lambda c: c["pretrain"]["training"].update(warmup_steps=10**6),
        r"warmup_steps 1000000 must be below max_steps",
    ),
    "guide of a later stage": (
        lambda c: c["pretrain"]["training"].update(guide=GUIDE | {"checkpoint": "finetune/model"}),
        r"pretrain\.training\.guide\.checkpoint 'finetune/model' is neither .*: backbone/model, ",
    ),
    "teacher that is not asked": (
        lambda c: c["finetune"]["training"].update(
            teacher=FROZEN | {"embeddings": None, "similarities": None}
        ),
        r"  finetune\.training\.teacher: .*needs embeddings or similarities",
    ),
    "term twice in a softmax": (
        lambda c: c["pretrain"]["training"].update(softmaxes=[["queries", "queries"]]),
        r"  pretrain\.training\.softmaxes\.0: .*names a term twice",
    ),
    "softmax of nothing": (
        lambda c: c["pretrain"]["training"].update(softmaxes=[[]]),
        r"  pretrain\.training\.softmaxes\.0: ",
    ),
    "option that is not given": (
        lambda c: c["pretrain"]["training"].pop("guide"),
        r"  pretrain\.training\.guide: Field required",
    ),
    "scratch without its settings": (
        lambda c: c["backbone"].update(scratch=None),
        r"source: scratch needs a mapping",
    ),
    "template without the text": (
        lambda c: c["prompts"].update(template="{instruction}"),
        r"must hold \{instruction\} and end with \{text\}",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_named_with_its_key_and_value(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(ParamsError, match=message):
        load(tmp_path, change)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["prune"]["fraction"] = 2
        content["compute"]["threads"] = 0

    with pytest.raises(ParamsError, match=r"2 faults:\n  prune\.fraction.*\n  compute\.threads"):
        load(tmp_path, change)


def test_a_number_in_exponent_form_is_a_number(tmp_path: Path) -> None:
    """PyYAML reads 1e-5 as a string; DVC reads it as a number."""
    path = tmp_path / "params.yaml"
    text = SAMPLE.read_text(encoding="utf-8").replace(
        "learning_rate: 1.0e-3", "learning_rate: 1e-3"
    )
    path.write_text(text, encoding="utf-8")
    assert load_params(path).pretrain.training.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize("checkpoint", ["prune/model", "/models/guide"])
def test_a_guide_is_a_model_of_an_earlier_stage_or_a_folder_anywhere(
    tmp_path: Path, checkpoint: str
) -> None:
    guide = GUIDE | {"checkpoint": checkpoint}
    params = load(tmp_path, lambda c: c["pretrain"]["training"].update(guide=guide))
    assert params.pretrain.training.guide is not None
    assert params.pretrain.training.guide.checkpoint == checkpoint


def test_a_section_cannot_be_changed(tmp_path: Path) -> None:
    params = load(tmp_path, lambda _: None)
    with pytest.raises(ValueError, match="frozen"):
        params.prune.fraction = 0.5
