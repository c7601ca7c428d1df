"""params.yaml as frozen, typed sections: the only place that reads the file.

Every section belongs to one stage and bears its name; `data`, `prompts`, `compute`, `store`,
`record` and `cost` are shared. An unknown key, a missing value or an impossible one is an error
that names the file, the key, what was given and what was expected.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tasks.params.addresses import ADDRESS_FAULT, in_corpus, is_address, is_outside
from tasks.params.base import PASSAGES, Section, Task
from tasks.params.data import Completion, Data, Ingest, Synthesize, Validate
from tasks.params.evaluation import (
    Baseline,
    Cost,
    Evaluate,
    Gate,
    Publish,
    Record,
    Report,
    Store,
)
from tasks.params.paths import ARTIFACTS
from tasks.params.teach import Teach, TeacherModel
from tasks.params.training import (
    Backbone,
    Compute,
    Merge,
    Mine,
    Multitask,
    Prompts,
    Prune,
    Stage,
    Training,
)

PARAMS_FILE = Path("params.yaml")
SLERP_VARIANTS = 2
"""Models on the arc of merge.method slerp."""
SYNTHETIC = "synthetic"
"""Source of what the stage synthesize writes: queries, so its task is retrieval."""
MINED_TASKS = ("retrieval", "nli", "bitext")
"""Tasks whose rows other documents are negatives of."""
TRAINED_TASKS: tuple[str, ...] = get_args(Task)
"""Tasks whose rows are examples: all but documents."""
CHOSEN_BY_TASKS = tuple(task for task in TRAINED_TASKS if task not in {"bitext", PASSAGES})
"""Tasks whose development rows merge can choose by."""
BASELINES = ("baseline/random", "baseline/tfidf")
"""Folders below artifacts that are evaluated beside models."""
RIVALS = "baseline/rivals"
"""The folder below artifacts that says which models of others are."""
MODELS = ("backbone/model", "prune/model", "pretrain/model", "finetune/model")
"""Model folders below artifacts in the order of their stages."""
FIRST_MODELS = {"pretrain": 2, "finetune": 3, "multitask": 4}
"""How many of `MODELS` exist when a training starts."""


class ParamsError(ValueError):
    """params.yaml is missing, unreadable or holds a value that cannot be used."""


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    ingest: Ingest
    validate_: Validate = Field(alias="validate")
    synthesize: Synthesize
    teach: Teach
    backbone: Backbone
    prune: Prune
    prompts: Prompts
    pretrain: Stage
    mine: Mine
    finetune: Stage
    multitask: Multitask
    merge: Merge
    baseline: Baseline
    evaluate: Evaluate
    gate: Gate
    report: Report
    publish: Publish
    compute: Compute
    store: Store
    record: Record
    cost: Cost

    @model_validator(mode="after")
    def _prefixes_fit(self) -> Self:
        backbone = self.backbone
        size, key = backbone.projection, "backbone.projection"
        if size is None and backbone.scratch is not None:
            size, key = backbone.scratch.hidden_size, "backbone.scratch.hidden_size"
        for stage, training in self._trainings().items():
            long = [dim for dim in training.matryoshka_dims if size is not None and dim > size]
            if long:
                raise ValueError(f"{stage}.training.matryoshka_dims {long} exceed {key} {size}")
            strangers = sorted(training.matryoshka_weights.keys() - {*training.matryoshka_dims})
            # one of them is the full size, which only the decoder itself knows
            if strangers != [size] and len(strangers) > (size is None):
                raise ValueError(
                    f"{stage}.training.matryoshka_weights names {strangers} beside the "
                    f"matryoshka_dims {training.matryoshka_dims}: only the full size may be added"
                )
        return self

    @model_validator(mode="after")
    def _fitted_projections_exist(self) -> Self:
        for stage, training in self._trainings().items():
            if training.fit_texts is not None and self.backbone.projection is None:
                raise ValueError(
                    f"{stage}.training.teacher.fit_texts {training.fit_texts} fits "
                    "backbone.projection, which is null: set it to the size of the teacher's "
                    "vectors, or fit_texts to null"
                )
        return self

    @model_validator(mode="after")
    def _sharded_batches_are_sized(self) -> Self:
        unsized = [
            stage
            for stage, training in self._trainings().items()
            if training.micro_batch_tokens == "auto"
        ]
        if self.compute.parallel == "fsdp2" and unsized:
            raise ValueError(
                f"compute.parallel fsdp2 with micro_batch_tokens auto in {', '.join(unsized)}: "
                "processes that share weights cannot try sizes; give a number of tokens"
            )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        tasks = {
            name: PASSAGES if source.passages else source.task
            for name, source in self.ingest.sources.items()
        }
        tasks[SYNTHETIC] = "retrieval"
        for where, names in self._used_sources().items():
            if names - tasks.keys():
                raise ValueError(
                    f"{where} names {sorted(names - tasks.keys())}; known are {sorted(tasks)}"
                )
            left_out = sorted(names & self.left_out)
            if left_out:
                raise ValueError(
                    f"{where} names {left_out}, which ingest.sources leaves out of every training: "
                    "remove them there, or left_out from the source"
                )
            usable = MINED_TASKS if where == "mine.sources" else TRAINED_TASKS
            unfit = {name: tasks[name] for name in sorted(names) if tasks[name] not in usable}
            if unfit:
                raise ValueError(
                    f"{where} names {_listed(unfit)}, whose rows have no use there: name sources "
                    f"of {', '.join(usable)}"
                )
        return self

    @model_validator(mode="after")
    def _every_task_has_its_instruction(self) -> Self:
        # unused sources too: their development rows are what merge chooses by
        tasks = {name: source.task for name, source in self.ingest.sources.items()}
        if any(SYNTHETIC in names for names in self._used_sources().values()):
            tasks[SYNTHETIC] = "retrieval"
        known = {"documents", PASSAGES, *self.prompts.tasks}
        without = {name: task for name, task in tasks.items() if task not in known}
        if without:
            raise ValueError(
                f"prompts.tasks has no {sorted(set(without.values()))}, the tasks of sources "
                f"{sorted(without)}: give an instruction, or an empty one for bare texts"
            )
        return self

    @model_validator(mode="after")
    def _merge_can_choose(self) -> Self:
        has_choice = self.ingest.development_fraction > 0 and any(
            source.task in CHOSEN_BY_TASKS for source in self.ingest.sources.values()
        )
        if self.merge.method == "best" and not has_choice:
            raise ValueError(
                "merge.method best chooses by development examples, and there would be none: set "
                "it to uniform_soup or self_positioning, or have ingest.development_fraction "
                f"above 0 and a source of {', '.join(CHOSEN_BY_TASKS)}"
            )
        variants = sorted(self.multitask.variants)
        if self.merge.method == "slerp" and len(variants) != SLERP_VARIANTS:
            raise ValueError(
                f"merge.method slerp goes from one variant to another; multitask.variants has "
                f"{len(variants)} ({', '.join(variants)}): take uniform_soup or self_positioning"
            )
        return self

    @model_validator(mode="after")
    def _rungs_exist(self) -> Self:
        rungs = set(self.evaluate.checkpoints)
        wanted = {self.gate.candidate, *self.gate.must_beat, self.report.before, self.report.after}
        if wanted - rungs:
            raise ValueError(f"{sorted(wanted - rungs)} are no rungs of evaluate.checkpoints")
        rivals = [f"{RIVALS}/{name}" for name in self.baseline.rivals]
        folders = (*BASELINES, *rivals, *self._models())
        strange = {
            rung: folder
            for rung, folder in self.evaluate.checkpoints.items()
            if folder not in folders
        }
        if strange:
            raise ValueError(
                f"evaluate.checkpoints has {_listed(strange)}, which no stage writes: take "
                f"{', '.join(folders)}"
            )
        return self

    @model_validator(mode="after")
    def _evaluated_tasks_are_named(self) -> Self:
        if self.report.example_task not in self.evaluate.tasks:
            raise ValueError(
                f"report.example_task {self.report.example_task!r} is not in evaluate.tasks"
            )
        strangers = sorted(self.evaluate.task_prompts.keys() - self.evaluate.tasks.keys())
        if strangers:
            raise ValueError(
                f"evaluate.task_prompts names {strangers}, which evaluate.tasks does not hold; "
                f"it holds {sorted(self.evaluate.tasks)}"
            )
        return self

    @model_validator(mode="after")
    def _what_is_judged_is_published(self) -> Self:
        judged = self.evaluate.checkpoints[self.gate.candidate]
        if judged != self.publish.checkpoint:
            raise ValueError(
                f"gate.candidate {self.gate.candidate!r} is {judged}, but publish.checkpoint is "
                f"{self.publish.checkpoint}: name the same model in both"
            )
        if judged not in self._models():
            raise ValueError(
                f"publish.checkpoint {judged} is no model: take {', '.join(self._models())}"
            )
        return self

    @model_validator(mode="after")
    def _frozen_models_are_there(self) -> Self:
        """A guide or teacher of a later stage would be a circle that DVC does not see."""
        if self.mine.recorded_by is not None:
            self._check_recorded(
                "mine.model", self.mine.recorded_by, {*self.mine.sources}, is_mined=True
            )
        for stage, training in self._trainings().items():
            known = MODELS[: FIRST_MODELS[stage]]
            for name, frozen in (("guide", training.guide), ("teacher", training.teacher)):
                if frozen is None or Path(frozen.checkpoint).is_absolute():
                    continue
                if frozen.recorded_by is not None:
                    used = self._sources_of(stage)
                    is_mined = stage != "pretrain" and bool(used & {*self.mine.sources})
                    self._check_recorded(
                        f"{stage}.training.{name}.checkpoint", frozen.recorded_by, used, is_mined
                    )
                elif frozen.checkpoint not in known:
                    raise ValueError(
                        f"{stage}.training.{name}.checkpoint {frozen.checkpoint!r} is neither an "
                        f"absolute path nor the model of an earlier stage: {', '.join(known)}"
                    )
        return self

    @model_validator(mode="after")
    def _averages_are_not_matched(self) -> Self:
        """An average has similarities; its leading numbers would be those of its first teacher."""
        for stage, training in self._trainings().items():
            teacher = training.teacher
            if teacher is None or teacher.embeddings is None:
                continue
            if teacher.recorded_by in self.teach.averages:
                raise ValueError(
                    f"{stage}.training.teacher.embeddings: {teacher.checkpoint} is an average, "
                    "which has similarities and no space of its own: set embeddings to null"
                )
        return self

    @model_validator(mode="after")
    def _synthesis_has_what_it_names(self) -> Self:
        filtered, endpoint = self.synthesize.round_trip, self.synthesize.endpoint
        if filtered is not None and filtered.teacher not in self.teach.teachers:
            raise ValueError(
                f"synthesize.round_trip.teacher {filtered.teacher}: teach.teachers names "
                f"{', '.join(self.teach.teachers) or 'none'}"
            )
        if endpoint is not None and isinstance(endpoint.interface, Completion):
            documents = {
                name
                for name, source in self.ingest.sources.items()
                if source.task == "documents" or source.also_documents
            }
            differing = sorted(documents ^ endpoint.interface.examples.keys())
            if differing:
                raise ValueError(
                    f"synthesize.endpoint.interface.examples must name the sources with documents, "
                    f"{', '.join(sorted(documents)) or 'of which there are none'}; it differs in "
                    f"{', '.join(differing)}"
                )
        return self

    def _check_recorded(self, where: str, teacher: str, used: set[str], is_mined: bool) -> None:
        """A recorded teacher says nothing of texts that it was not shown."""
        if teacher not in self.teach.teachers:
            raise ValueError(
                f"{where} teach/{teacher}: teach.teachers names "
                f"{', '.join(self.teach.teachers) or 'none'}"
            )
        unseen = sorted(used - {*self.teach.sources})
        if unseen:
            raise ValueError(
                f"{where} teach/{teacher}: it was not shown {', '.join(unseen)}, which are used "
                "there: name them under teach.sources"
            )
        if is_mined and not self.teach.documents:
            raise ValueError(
                f"{where} teach/{teacher}: mined documents are used there, which it was not shown: "
                "set teach.documents to true"
            )

    def _sources_of(self, stage: str) -> set[str]:
        return set().union(
            *(
                names
                for where, names in self._used_sources().items()
                if where.startswith(f"{stage}.")
            )
        )

    @property
    def left_out(self) -> set[str]:
        """Sources that no training reads."""
        return {name for name, source in self.ingest.sources.items() if source.left_out}

    def leftovers(self, artifacts: Path = ARTIFACTS) -> list[Path]:
        """What lies where variants and rungs do without being one of this file's.

        Those of another profile, or pieces of a stage that was killed. The stages that read all
        variants or rungs depend on the folder around them, so DVC would hash these as well: a
        clone without them could never say that it is up to date.
        """
        named = {"multitask": self.multitask.variants, "evaluate": self.evaluate.checkpoints}
        return sorted(
            path
            for folder, names in named.items()
            if (artifacts / folder).is_dir()
            for path in (artifacts / folder).iterdir()
            if path.name not in names
        )

    def outside(self) -> dict[str, dict[str, str]]:
        """What is read from where neither DVC nor git looks: stage to keys and their addresses."""
        corpus, backbone = self.data.corpus, self.backbone.source
        is_folder = is_address(backbone) or Path(backbone).is_dir()
        found = {
            "ingest": {
                f"ingest.sources.{name}.path": in_corpus(corpus, source.path)
                for name, source in self.ingest.sources.items()
                if is_outside(source.path)
            },
            "backbone": {"backbone.source": backbone} if is_folder else {},
            "teach": {
                f"teach.teachers.{name}.source": teacher.source
                for name, teacher in self.teach.asked.items()
                if isinstance(teacher, TeacherModel) and Path(teacher.source).is_dir()
            },
        }
        found["baseline"] = {
            f"baseline.rivals.{name}.source": rival.source
            for name, rival in self.baseline.rivals.items()
            if Path(rival.source).is_dir()
        }
        asked = self.synthesize.round_trip
        parts = self.teach.parts(asked.teacher) if asked is not None else []
        keys = {f"teach.teachers.{name}.source" for name in parts}
        found["synthesize"] = {key: at for key, at in found["teach"].items() if key in keys}
        for stage, training in self._trainings().items():
            frozen = {"guide": training.guide, "teacher": training.teacher}
            found[stage] = {
                f"{stage}.training.{name}.checkpoint": each.checkpoint
                for name, each in frozen.items()
                if each is not None and Path(each.checkpoint).is_absolute()
            }
        return found

    def out_of_reach(self) -> dict[str, str]:
        """Keys to the addresses outside of the checkout: no other one can have what lies there.

        What is read there may be another thing tomorrow, so nobody can have a version again that
        was trained on it.
        """
        shared = {"data.corpus": self.data.corpus, "data.benchmark": self.data.benchmark}
        found = {key: address for key, address in shared.items() if is_outside(address)}
        for named in self.outside().values():
            found |= named
        return found

    def _models(self) -> list[str]:
        """Every model folder below artifacts that the stages write."""
        variants = [f"multitask/{name}/model" for name in self.multitask.variants]
        return [*MODELS, *variants, "merge/model"]

    def _trainings(self) -> dict[str, Training]:
        return {
            "pretrain": self.pretrain.training,
            "finetune": self.finetune.training,
            "multitask": self.multitask.training,
        }

    def _used_sources(self) -> dict[str, set[str]]:
        return {
            "teach.sources": set(self.teach.sources),
            "pretrain.sources": set(self.pretrain.sources),
            "finetune.sources": set(self.finetune.sources),
            "mine.sources": set(self.mine.sources),
            **{
                f"multitask.variants.{name}.sources": set(variant.sources)
                for name, variant in self.multitask.variants.items()
            },
        }


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: The file is missing, is no YAML mapping, or a value is wrong; the message
            lists every fault with its key, what was given and what was expected.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path} does not exist: copy one of infra/profiles/ (make profile PROFILE=sample)"
        ) from None
    except KeyTwiceError as error:
        raise ParamsError(f"{path} has the {error}: keep one of them") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # not `from error`: the trace would quote the line, and what it holds, once more
        raise ParamsError(_hide_users(f"{path} is no valid YAML: {error}")) from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must hold a mapping of sections, got {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(_describe(fault) for fault in error.errors())
        raise ParamsError(f"{path} has {error.error_count()} faults:\n{faults}") from None


def read_yaml(text: str) -> Any:  # noqa: ANN401 - any YAML value
    """What the text says.

    Raises:
        KeyTwiceError: A mapping holds a key twice.
        yaml.YAMLError: It is no YAML.
    """
    return yaml.load(text, _UniqueKeys)  # noqa: S506 - a SafeLoader


class KeyTwiceError(ValueError):
    """A mapping holds a key twice, of which YAML would silently take the last."""


class _UniqueKeys(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise KeyTwiceError(f"key {name!r} twice, on lines {lines[name]} and {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def _listed(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({value})" for name, value in pairs.items())


def _describe(fault: ErrorDetails) -> str:
    parts = (str(part) for part in fault["loc"])
    # in brackets stands which of several kinds a section was taken for
    key = ".".join(part for part in parts if not part.startswith("(")) or "(whole file)"
    # what stands under an unknown key may be a secret
    is_hidden = fault["type"] in {ADDRESS_FAULT, "extra_forbidden"}
    is_shown = not is_hidden and not isinstance(fault["input"], dict)
    given = f", got {fault['input']!r}" if is_shown else ""
    hint = (
        " (unknown key: remove it or correct its spelling)"
        if fault["type"] == "extra_forbidden"
        else ""
    )
    return _hide_users(f"  {key}: {fault['msg']}{given}{hint}")


def _hide_users(text: str) -> str:
    """The text without the user and password of any address in it."""
    return re.sub(r"(://).*@", r"\1...@", text)
