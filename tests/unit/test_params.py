"""params.yaml: every profile loads, every fault is named with its key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tasks.params.addresses import check_place, check_service
from tasks.params.base import Section
from tasks.params.data import Fields, Source
from tasks.params.load import Params, ParamsError, load_params
from tests.unit.fake_embeddings import teacher_at

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


def test_params_yaml_as_it_stands_loads() -> None:
    """It may be edited, and is no copy of a profile then."""
    load_params(SAMPLE.parents[2] / "params.yaml")


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(
        ParamsError,
        match=r"does not exist: copy one of infra/profiles/ \(make profile PROFILE=sample",
    ):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"a: [1, 2", b"\xff\xfe", b"a: b: c"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=r"params\.yaml is no valid YAML"):
        load_params(path)


def test_a_section_given_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(SAMPLE.read_text(encoding="utf-8") + "\nprune:\n  fraction: 0\n")
    with pytest.raises(ParamsError, match=r"has the key 'prune' twice, on lines \d+ and \d+: keep"):
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


TEACHER = {
    "source": "models/e5", "revision": None, "query_prompt": "query: ",
    "document_prompt": "passage: ", "max_length_tokens": 256,
}  # fmt: skip
AVERAGE = {"average": {"e5": 0.7, "x": 0.3}}
RECORDED = GUIDE | {"checkpoint": "teach/e5"}


def taught(
    content: dict[str, Any], *, stage: str = "pretrain", sources: Any = None,
    documents: bool = True, **guide: Any,
) -> None:  # fmt: skip
    """A recorded guide of a stage, shown every source but for what is said otherwise."""
    every = [*content["ingest"]["sources"], "synthetic"]
    used = [name for name in every if name in str(content[stage]["sources"])]
    content["teach"] |= {
        "teachers": {"e5": TEACHER}, "sources": sources or used, "documents": documents,
    }  # fmt: skip
    content[stage]["training"] |= {"guide": RECORDED | guide}


def matched_average(content: dict[str, Any]) -> None:
    """Its leading numbers are those of one teacher."""
    taught(content)
    content["teach"]["teachers"] |= {"x": TEACHER, "a": AVERAGE}
    content["pretrain"]["training"]["teacher"] = FROZEN | {
        "checkpoint": "teach/a", "whitening": None, "fit_texts": None, "similarities": None,
        "embeddings": {"weight": 1.0, "size": None},
    }  # fmt: skip


def documents_only(content: dict[str, Any]) -> None:
    """All examples are synthetic."""
    sources = content["ingest"]["sources"]
    content["ingest"]["sources"] = {"documents": sources["documents"]}
    weights = {"synthetic": 1.0}
    for section in (content["pretrain"], content["finetune"]):
        section["sources"] = weights
    for variant in content["multitask"]["variants"].values():
        variant["sources"] = weights
    content["mine"]["sources"] = ["synthetic"]


def only_translations(content: dict[str, Any]) -> None:
    """All examples are pairs of a sentence and its translation."""
    documents_only(content)
    pairs = content["ingest"]["sources"]["documents"] | {
        "task": "bitext",
        "fields": {"query": "title", "positive": "text"},
    }
    content["ingest"]["sources"]["pairs"] = pairs


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
            teacher=FROZEN
            | {"embeddings": None, "similarities": None, "whitening": None, "fit_texts": None}
        ),
        r"  finetune\.training\.teacher: .*needs embeddings or similarities",
    ),
    "fit of a projection that is not there": (
        lambda c: c["finetune"]["training"].update(
            teacher=FROZEN
            | {"similarities": {"weight": 1.0, "teacher_temperature": 0.05}}
            | {"embeddings": None, "whitening": None, "fit_texts": 100}
        ),
        r"finetune\.training\.teacher\.fit_texts 100 fits backbone\.projection, which is null",
    ),
    "mean of vectors that nobody recorded": (
        lambda c: c["finetune"]["training"].update(
            teacher=FROZEN
            | {"similarities": {"weight": 1.0, "teacher_temperature": 0.05}}
            | {"embeddings": None, "whitening": 0.5, "fit_texts": None}
        ),
        r"teacher: .*whitening with the checkpoint .*name a teacher of the stage",
    ),
    "adapters of blocks that run once": (
        lambda c: c["pretrain"]["training"].update(
            frozen_blocks=1,
            lora={"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]},
        ),
        r"pretrain\.training: .*frozen_blocks 1 with lora: .*set one of them to 0 or null",
    ),
    "teacher that was never asked": (
        lambda c: c["pretrain"]["training"].update(guide=RECORDED),
        r"guide\.checkpoint teach/e5: teach\.teachers names none",
    ),
    "teacher that was not shown a source": (
        lambda c: taught(c, sources=["questions"]),
        r"guide\.checkpoint teach/e5: it was not shown .*: name them under teach\.sources",
    ),
    "teacher that was not shown what is mined": (
        lambda c: taught(c, stage="finetune", documents=False),
        r"mined documents are used there, .*set teach\.documents to true",
    ),
    "miner that is no model": (
        lambda c: c["mine"].update(model="finetune/model"),
        r"  mine: .*model 'finetune/model': expected pretrain/model, or teach/NAME",
    ),
    "miner that was never asked": (
        lambda c: c["mine"].update(model="teach/e5"),
        r"mine\.model teach/e5: teach\.teachers names none",
    ),
    "record with prompts of its own": (
        lambda c: taught(c, query_prompt="query: "),
        r"was recorded with the prompts of its teacher",
    ),
    "teacher in a bucket": (
        lambda c: c["teach"].update(teachers={"e5": TEACHER | {"source": "s3://models/e5"}}),
        r"teach\.teachers\.e5\.source: .*fetch the teacher into a folder",
    ),
    "teacher that depends on itself": (
        lambda c: c["teach"].update(teachers={"e5": TEACHER | {"source": "artifacts/merge/model"}}),
        r"teach\.teachers\.e5\.source: .*an output of these stages",
    ),
    "teacher that is a name": (
        lambda c: c["teach"].update(teachers={"e5": "models/e5"}),
        r"teach\.teachers\.e5: .*dictionary",
    ),
    "teacher behind half an endpoint": (
        lambda c: c["teach"].update(teachers={"e5": {"base_url": "http://h/v1"}}),
        r"teach\.teachers\.e5\.model: Field required",
    ),
    "average of a stranger": (
        lambda c: c["teach"].update(
            teachers={"e5": TEACHER, "both": {"average": {"e5": 0.5, "bge": 0.5}}}
        ),
        r"teach: .*teachers\.both averages bge: expected .*names e5",
    ),
    "average of an average": (
        lambda c: c["teach"].update(
            teachers={
                "e5": TEACHER,
                "a": AVERAGE,
                "b": {"average": {"a": 1, "e5": 1}},
                "x": TEACHER,
            }
        ),
        r"teach: .*teachers\.b averages a: expected models and endpoints",
    ),
    "average of one": (
        lambda c: c["teach"].update(teachers={"e5": TEACHER, "a": {"average": {"e5": 1}}}),
        r"teach\.teachers\.a\.average: .*at least 2",
    ),
    "average by a weight of nothing": (
        lambda c: c["teach"].update(
            teachers={"e5": TEACHER, "x": TEACHER, "a": {"average": {"e5": 1, "x": 0}}}
        ),
        r"teach\.teachers\.a\.average\.x: .*greater than 0",
    ),
    "average whose vectors are matched": (
        matched_average,
        r"pretrain\.training\.teacher\.embeddings: teach/a is an average, .*to null",
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
    "prefix longer than the embedding": (
        lambda c: c["finetune"]["training"].update(matryoshka_dims=[64, 193]),
        r"finetune\.training\.matryoshka_dims \[193\] exceed backbone\.scratch\.hidden_size 192",
    ),
    "one sub-batch, interleaved": (
        lambda c: c["pretrain"]["training"].update(batches="interleaved"),
        r"sub_batches 1 with batches interleaved: interleaved needs 2 or more",
    ),
    "sub-batches of one source": (
        lambda c: c["pretrain"]["training"].update(sub_batches=4),
        r"sub_batches 4 with batches source: .*the others 1",
    ),
    "memory of mixed batches": (
        lambda c: c["pretrain"]["training"].update(
            batches="mixed", memory={"batches": 2, "from_step": 1}
        ),
        r"memory with batches mixed: .*set batches to source, or memory to null",
    ),
    "sharded weights and micro-batches to be sized": (
        lambda c: [
            c["compute"].update(parallel="fsdp2"),
            c["finetune"]["training"].update(micro_batch_tokens="auto"),
        ],
        r"compute\.parallel fsdp2 with micro_batch_tokens auto in finetune: .*give a number",
    ),
    "memory and guide": (
        lambda c: c["pretrain"]["training"].update(
            guide=GUIDE | {"checkpoint": "prune/model"}, memory={"batches": 2, "from_step": 1}
        ),
        r"memory with guide: .*set one of them to null",
    ),
    "sub-batches of unequal size": (
        lambda c: c["finetune"]["training"].update(batches="interleaved", sub_batches=5),
        r"batch_size 64 must be 5 sub_batches of equal size",
    ),
    "sub-batches of one query": (
        lambda c: c["finetune"]["training"].update(batches="interleaved", sub_batches=64),
        r"batch_size 64 must be 64 sub_batches of equal size with 2 queries or more",
    ),
    "negative exponent": (
        lambda c: c["finetune"]["training"].update(source_temperature=-0.5),
        r"  finetune\.training\.source_temperature: .*, got -0\.5",
    ),
    "scratch without its settings": (
        lambda c: c["backbone"].update(scratch=None),
        r"source: scratch needs a mapping",
    ),
    "training source that the prompts do not know": (
        lambda c: c["prompts"]["tasks"].pop("sts"),
        r"prompts\.tasks has no \['sts'\], the tasks of sources \['paraphrases'\]: give",
    ),
    "synthetic queries without a prompt": (
        lambda c: (
            c["prompts"]["tasks"].pop("retrieval"),
            [c["ingest"]["sources"][name].update(task="nli") for name in ("questions", "titles")],
        ),
        r"prompts\.tasks has no \['retrieval'\], the tasks of sources \['synthetic'\]",
    ),
    "no text between the lengths": (
        lambda c: c["ingest"].update(min_characters=30, max_characters=20),
        r"  ingest: .*min_characters 30 is above max_characters 20",
    ),
    "n-grams that fall": (
        lambda c: c["baseline"].update(ngram_range=[5, 2]),
        r"  baseline: .*ngram_range \[5, 2\] must not fall",
    ),
    "heads that do not divide": (
        lambda c: c["backbone"]["scratch"].update(num_heads=3, num_key_value_heads=2),
        r"  backbone\.scratch: .*num_heads 3 must be a multiple of num_key_value_heads 2",
    ),
    "true for an integer": (
        lambda c: c["compute"].update(threads=True),
        r"  compute\.threads: .*valid integer, got True",
    ),
    "text for an integer": (
        lambda c: c["pretrain"]["training"].update(max_steps="12"),
        r"  pretrain\.training\.max_steps: .*valid integer, got '12'",
    ),
    "true for a number": (
        lambda c: c["pretrain"]["training"].update(learning_rate=True),
        r"  pretrain\.training\.learning_rate: .*expected a number, not true or false, got True",
    ),
    "choice between merges without development examples": (
        lambda c: [documents_only(c), c["merge"].update(method="best")],
        r"merge\.method best chooses by development examples, .*set it to uniform_soup",
    ),
    "choice between merges without a development split": (
        lambda c: [c["ingest"].update(development_fraction=0), c["merge"].update(method="best")],
        r"merge\.method best chooses .*, or have ingest\.development_fraction above 0",
    ),
    "choice between merges by translations": (
        lambda c: [only_translations(c), c["merge"].update(method="best")],
        r"merge\.method best chooses by development examples, and there would be none",
    ),
    "classes to be mined": (
        lambda c: c["mine"].update(sources=["questions", "topics"]),
        r"mine\.sources names topics \(classification\), .*of retrieval, nli, bitext",
    ),
    "documents to be trained on": (
        lambda c: c["finetune"]["sources"].update(documents=1.0),
        r"finetune\.sources names documents \(documents\), whose rows have no use there",
    ),
    "documents in a variant": (
        lambda c: c["multitask"]["variants"]["balanced"]["sources"].update(documents=1.0),
        r"multitask\.variants\.balanced\.sources names documents \(documents\)",
    ),
    "rung of a variant that has another name now": (
        lambda c: c["multitask"]["variants"].update(
            even=c["multitask"]["variants"].pop("balanced")
        ),
        r"checkpoints has multitask-balanced \(multitask/balanced/model\), .*multitask/even/model",
    ),
    "another model judged than published": (
        lambda c: c["publish"].update(checkpoint="finetune/model"),
        r"gate\.candidate 'final' is merge/model, but .*: name the same model in both",
    ),
    "baseline to be published": (
        lambda c: [
            c["gate"].update(candidate="tfidf"),
            c["publish"].update(checkpoint="baseline/tfidf"),
        ],
        r"publish\.checkpoint baseline/tfidf is no model: take backbone/model",
    ),
    "instruction of a task that is not evaluated": (
        lambda c: c["evaluate"].update(task_prompts={"Nothing": "?"}),
        r"evaluate\.task_prompts names \['Nothing'\], which evaluate\.tasks does not hold",
    ),
    "prefix longer than the projection": (
        lambda c: c["backbone"].update(projection=32),
        r"pretrain\.training\.matryoshka_dims \[64\] exceed backbone\.projection 32",
    ),
    "weight of a size that is not trained": (
        lambda c: c["pretrain"]["training"].update(matryoshka_weights={32: 1.0, 192: 1.0}),
        r"pretrain\.training\.matryoshka_weights names \[32, 192\] beside .* \[64\]",
    ),
    "spreadsheet": (
        lambda c: c["ingest"]["sources"]["topics"].update(format="xlsx"),
        r"ingest\.sources\.topics\.format: .*save its table as CSV or Parquet, got 'xlsx'",
    ),
    "encoding that does not exist": (
        lambda c: c["ingest"]["sources"]["topics"].update(encoding="win1251"),
        r"ingest\.sources\.topics\.encoding: .*'win1251' is no encoding of texts: give",
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


def test_documents_alone_will_do_when_all_examples_are_synthetic(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        documents_only(content)
        content["merge"]["method"] = "uniform_soup"

    assert not load(tmp_path, change).ingest.has_examples


def test_the_full_size_may_have_a_weight_among_the_prefixes(tmp_path: Path) -> None:
    weights = {64: 0.5, 192: 1.0}
    params = load(tmp_path, lambda c: c["finetune"]["training"].update(matryoshka_weights=weights))
    assert params.finetune.training.matryoshka_weights == weights


def test_a_section_cannot_be_changed(tmp_path: Path) -> None:
    params = load(tmp_path, lambda _: None)
    with pytest.raises(ValueError, match="frozen"):
        params.prune.fraction = 0.5


def sections(base: type[BaseModel] = Section) -> list[type[BaseModel]]:
    """Every class of a mapping of params.yaml."""
    below = base.__subclasses__()
    return below + [deeper for each in below for deeper in sections(each)]


def test_every_value_says_what_it_is() -> None:
    """The meaning of a key stands in one place, the class of its section."""
    bare = [
        f"{section.__name__}.{name}"
        for section in sections()
        if section is not Params  # its fields are sections, which say it in their own docstring
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert not bare


def test_no_value_has_a_default_in_code() -> None:
    """params.yaml holds every value of a run; only columns and rare switches of a source may go."""
    silent = [
        f"{section.__name__}.{name}"
        for section in sections()
        if section not in {Fields, Source}
        for name, field in section.model_fields.items()
        if not field.is_required()
    ]
    assert not silent


def test_weights_alone_may_decide_and_batches_may_be_composed(tmp_path: Path) -> None:
    values = {"source_temperature": 0, "batches": "interleaved", "sub_batches": 4}
    training = load(tmp_path, lambda c: c["finetune"]["training"].update(values)).finetune.training
    assert training.source_temperature == 0.0
    assert training.sub_batches == 4


def test_every_profile_trains_on_one_source_per_step() -> None:
    """What a batch is made of changes results, so no profile may come to another way unnoticed."""
    for path in PROFILES:
        params = load_params(path)
        for stage in (params.pretrain, params.finetune, params.multitask):
            if stage.training.teacher is not None:
                continue  # a teacher tells the rows of all sources apart
            assert (stage.training.batches, stage.training.sub_batches) == ("source", 1)


PLACES = {
    "store.url": lambda content, value: content["store"].update(url=value),
    "data.corpus": lambda content, value: content["data"].update(corpus=value),
    "data.benchmark": lambda content, value: content["data"].update(benchmark=value),
    "ingest.sources.topics.path": lambda content, value: content["ingest"]["sources"][
        "topics"
    ].update(path=value),
    "backbone.source": lambda content, value: content["backbone"].update(
        source=value, scratch=None
    ),
}


def with_endpoint(content: dict[str, Any], address: object) -> None:
    content["synthesize"]["endpoint"] = {
        "base_url": address, "model": "m", "concurrency": 1, "timeout_s": 1.0, "max_retries": 0,
        "max_backoff_s": 1.0, "temperature": 0.0, "interface": {"kind": "chat", "min_score": 3},
    }  # fmt: skip


SERVICES = {
    "store.endpoint_url": lambda content, value: content["store"].update(endpoint_url=value),
    "synthesize.endpoint.base_url": with_endpoint,
    "teach.teachers.e5.base_url": lambda content, value: content["teach"].update(
        teachers={"e5": teacher_at(str(value))}
    ),
}


@pytest.mark.parametrize("value", ["sk-proj-hunter2", "hunter2", "$KEY", ""])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(
    tmp_path: Path, value: str
) -> None:
    with pytest.raises(
        ParamsError, match=r"teach\.teachers\.e5\.key_variable: .*OPENAI_API_KEY"
    ) as told:
        load(
            tmp_path,
            lambda c: c["teach"].update(
                teachers={"e5": teacher_at("http://h/v1", key_variable=value)}
            ),
        )
    assert "hunter2" not in str(told.value)
    with pytest.raises(ParamsError, match=r"teach.teachers.e5.api_key: .*unknown key") as told:
        load(
            tmp_path,
            lambda c: c["teach"].update(teachers={"e5": teacher_at("http://h/v1", api_key=value)}),
        )
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("address", ["store", "../a/b", "/a:b/c@d", "модель", "s3://b/модель@1"])
def test_a_place_is_a_path_or_a_bucket(address: str) -> None:
    assert check_place(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "file:///mnt/store", "file:x", "s3:/b", "S3://b", "gs://b", "s3://", "s3:///p", "~/x",
     "simplecache::x"],
)  # fmt: skip
def test_any_other_place_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"got .*expected .*s3://bucket/prefix"):
        check_place(address)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:7480", "s3://b", "http://", "http://h:port", "http://h/v1?a=b", "h h"],
)
def test_a_service_is_an_http_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"got no address .*http\(s\)://host:port"):
        check_service(address)
    assert check_service("https://[::1]:80/v1") == "https://[::1]:80/v1"


@pytest.mark.parametrize("key", [*PLACES, *SERVICES])
def test_keys_in_an_address_are_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    address = f"{'s3' if key in PLACES else 'http'}://hidden:hid/hidden"
    change = (PLACES | SERVICES)[key]
    for given in (address, f"{address}@host/v1", "ftp://hidden:hid@host"):
        with pytest.raises(ParamsError, match=rf"{key}: got") as caught:
            load(tmp_path, lambda content, given=given: change(content, given))
        assert "hidden" not in str(caught.value)


def test_no_message_repeats_keys_wherever_they_stand(tmp_path: Path) -> None:
    address = "http://me:hidden@host"
    with pytest.raises(ParamsError, match=r"synthesize\.endpoint: .*//\.\.\.@host") as caught:
        load(tmp_path, lambda content: content["synthesize"].update(endpoint=address))
    assert "hidden" not in str(caught.value)
    (tmp_path / "params.yaml").write_text(f"store: {{url: a: {address}")
    with pytest.raises(ParamsError, match="no valid YAML") as caught:
        load_params(tmp_path / "params.yaml")
    assert "hidden" not in str(caught.value)


TEACHER = {
    "source": "models/e5", "revision": None, "query_prompt": "", "document_prompt": "",
    "max_length_tokens": 256,
}  # fmt: skip
COMPLETION = {
    "kind": "completion", "styles": ["keywords"], "passage_characters": 500, "max_tokens": 40,
}  # fmt: skip


def test_the_teacher_of_the_round_trip_must_be_named(tmp_path: Path) -> None:
    def change(content: dict[str, Any], teacher: str) -> None:
        content["synthesize"]["round_trip"] = {"teacher": teacher, "top_k": 3, "pool": 100}
        content["teach"]["teachers"] = {"e5": TEACHER}

    load(tmp_path, lambda content: change(content, "e5"))
    with pytest.raises(ParamsError, match=r"round_trip\.teacher bge: teach\.teachers names e5"):
        load(tmp_path, lambda content: change(content, "bge"))


def test_a_folder_of_the_round_trip_is_read_from_outside(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        other = TEACHER | {"source": str(tmp_path / "other")}
        content["teach"]["teachers"] = {"e5": TEACHER | {"source": str(tmp_path)}, "other": other}
        content["synthesize"]["round_trip"] = {"teacher": "e5", "top_k": 3, "pool": 100}

    (tmp_path / "other").mkdir()
    outside = load(tmp_path, change).outside()
    assert outside["synthesize"] == {"teach.teachers.e5.source": str(tmp_path)}
    assert len(outside["teach"]) == 2


def test_completions_need_examples_for_every_source_with_documents(tmp_path: Path) -> None:
    def change(content: dict[str, Any], *sources: str) -> None:
        with_endpoint(content, "http://127.0.0.1:1/v1")
        examples = dict.fromkeys(sources, "encyclopaedia")
        content["synthesize"]["endpoint"]["interface"] = COMPLETION | {"examples": examples}

    load(tmp_path, lambda content: change(content, "documents"))
    for sources in (["news"], ["documents", "news"]):
        with pytest.raises(ParamsError, match=r"interface\.examples must name .*documents; .*news"):
            load(tmp_path, lambda content, given=sources: change(content, *given))


def test_an_interface_takes_only_its_own_keys(tmp_path: Path) -> None:
    def change(content: dict[str, Any], **interface: object) -> None:
        with_endpoint(content, "http://127.0.0.1:1/v1")
        content["synthesize"]["endpoint"]["interface"] = interface

    with pytest.raises(ParamsError, match=r"interface\.completion\.examples: Field required"):
        load(tmp_path, lambda content: change(content, **COMPLETION))
    with pytest.raises(ParamsError, match=r"interface\.chat\.styles: .*unknown key"):
        load(tmp_path, lambda content: change(content, kind="chat", min_score=4, styles=[]))
    with pytest.raises(ParamsError, match=r"interface: .*'chat', 'completion'"):
        load(tmp_path, lambda content: change(content, kind="responses"))
