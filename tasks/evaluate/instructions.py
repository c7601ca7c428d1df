"""Which instruction goes before which text of which evaluation task."""

from collections.abc import Mapping
from dataclasses import dataclass

from mteb import TaskMetadata
from mteb.types import PromptType

from tasks.contract.prompts import query_prompt
from tasks.contract.stage import StageError
from tasks.params.load import Params
from tasks.params.training import Prompts

TASK_OF_TYPE: Mapping[str, str] = {
    "Retrieval": "retrieval",
    "Reranking": "retrieval",
    "InstructionRetrieval": "retrieval",
    "InstructionReranking": "retrieval",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": "clustering",
    "STS": "sts",
    "PairClassification": "nli",
    "BitextMining": "bitext",
}
"""mteb's task type to the key of prompts.tasks that was trained for it."""


@dataclass(frozen=True)
class Instructions:
    """The instruction of every evaluation task, rendered as in training."""

    prompts: Prompts
    overrides: Mapping[str, str]
    """Instruction by name of the evaluation task, in place of the one of its type."""

    @classmethod
    def of(cls, params: Params) -> "Instructions":
        """The instructions of sections prompts and evaluate.

        Raises:
            StageError: evaluate.task_prompts names a task that is not evaluated.
        """
        strangers = set(params.evaluate.task_prompts) - set(params.evaluate.tasks)
        if strangers:
            raise StageError(
                f"evaluate.task_prompts names {sorted(strangers)}, which evaluate.tasks does not "
                f"hold; it holds {sorted(params.evaluate.tasks)}"
            )
        return cls(prompts=params.prompts, overrides=params.evaluate.task_prompts)

    def prefix(self, metadata: TaskMetadata, side: PromptType | None) -> str:
        """What is written before a text; empty for documents, which are always bare.

        A task that does not tell queries from documents (STS, classification, clustering, pair
        classification) gets the instruction on every text.

        Raises:
            StageError: No instruction is known for the type of the task.
        """
        if side is PromptType.document:
            return ""
        if metadata.name in self.overrides:
            return self._own(metadata.name)
        task = TASK_OF_TYPE.get(metadata.type)
        if task is None or task not in {str(name) for name in self.prompts.tasks}:
            raise StageError(
                f"task {metadata.name} is of type {metadata.type}, for which prompts.tasks has no "
                f"instruction: give one in evaluate.task_prompts"
            )
        return query_prompt(self.prompts, task)

    def by_mteb_name(self) -> dict[str, str]:
        """The prompts under the names that stock mteb looks up, so that it picks those of `prefix`.

        mteb asks for a name with its side before the bare name and for the name of a task before
        its type: both sides of each are given, and empty prompts too.
        """
        trained = {str(name) for name in self.prompts.tasks}
        named = {
            kind: query_prompt(self.prompts, task)
            for kind, task in TASK_OF_TYPE.items()
            if task in trained
        }
        named |= {name: self._own(name) for name in self.overrides}
        return named | {f"{name}-{PromptType.document.value}": "" for name in named}

    def _own(self, name: str) -> str:
        one = {"retrieval": self.overrides[name]}
        return query_prompt(self.prompts.model_copy(update={"tasks": one}), "retrieval")
