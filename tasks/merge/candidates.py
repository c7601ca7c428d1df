"""The models that a merge can end with: a variant, their soup, slerp, self-positioned sum."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.encoder.encoder import Encoder
from model.merging.probe import Probe, ProbeSettings, parameters_by_tensor
from model.merging.self_positioning import Position, search_position
from model.merging.slerp import cosines, slerp_task_vectors
from model.merging.task_vectors import TaskVectors
from model.merging.uniform_soup import uniform_soup
from model.merging.weights import SavedWeights, write_merged
from model.training.settings import TrainingSource
from tasks.contract.stage import StageError
from tasks.machine.compute import Machine
from tasks.params.load import Params
from tasks.training.settings import settings_of, temperature_of


@dataclass(frozen=True)
class Ingredients:
    """What is merged: the variants, in order of their names, and the model they come from."""

    base: Path
    """Model folder, theta_0."""
    variants: dict[str, Path]
    """Model folder of each variant."""

    def first(self) -> Path:
        """The folder whose configuration and tokenizer the merged model takes."""
        return next(iter(self.variants.values()))

    def task_vectors(self) -> TaskVectors:
        """Differences of the variants from the base."""
        return TaskVectors(SavedWeights(self.base), self._checkpoints())

    def write_soup(self, target: Path) -> None:
        """Write the mean of the variants as a model folder."""
        write_merged(self.first(), target, uniform_soup(self._checkpoints()))

    def write_slerp(self, target: Path) -> None:
        """Write the middle of the arc between the task vectors of the two variants."""
        first, second = self._checkpoints()
        merged, _ = slerp_task_vectors(SavedWeights(self.base), first, second, 0.5)
        write_merged(self.first(), target, merged)

    def write_self_positioned(
        self,
        target: Path,
        params: Params,
        sources: Sequence[TrainingSource],
        machine: Machine,
    ) -> dict[str, Any]:
        """Search the best position on a probe of `sources`, write it; the scalars found."""
        settings = params.merge.self_positioning
        attention = params.backbone.attn_implementation
        encoder = Encoder.load(
            self.base, device=machine.device, attn_implementation=attention
        ).float()
        vectors = self.task_vectors()
        found = search_position(
            parameters_by_tensor(encoder),
            vectors,
            Probe(encoder, sources, probe_settings(params, machine)).backward,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            size_penalty=settings.size_penalty,
        )
        write_merged(self.first(), target, vectors.at(found.coefficients))
        return self._describe(found)

    def _describe(self, found: Position) -> dict[str, Any]:
        # batches differ in difficulty: single steps cannot be compared, means of many can
        half = max(1, len(found.losses) // 2)
        return {
            "weights": dict(zip(self.variants, found.weights, strict=True)),
            "length": found.length,
            "coefficients": dict(zip(self.variants, found.coefficients, strict=True)),
            "mean_loss_first_half": sum(found.losses[:half]) / half,
            "mean_loss_second_half": sum(found.losses[-half:]) / half,
        }

    def describe_task_vectors(self) -> dict[str, Any]:
        """Norm of each task vector and cosine of each pair, over all tensors as one vector."""
        gram_NN = self.task_vectors().gram()
        cosine_NN, names = cosines(gram_NN), list(self.variants)
        return {
            "norms": dict(zip(names, gram_NN.diagonal().sqrt().tolist(), strict=True)),
            "cosines": {
                f"{left}|{right}": float(cosine_NN[i, j])
                for i, left in enumerate(names)
                for j, right in enumerate(names)
                if i < j
            },
        }

    def _checkpoints(self) -> list[SavedWeights]:
        return [SavedWeights(folder) for folder in self.variants.values()]


def probe_settings(params: Params, machine: Machine) -> ProbeSettings:
    """The search measures itself by the loss of stage 3, on batches of its own size."""
    settings, training = params.merge.self_positioning, params.multitask.training
    return settings_of(
        training,
        ProbeSettings,
        examples=settings.probe_examples,
        batch_size=settings.batch_size,
        temperature=temperature_of(training.loss, settings.temperature),
        micro_batch_tokens=training.tokens_at_once,
        precision=machine.precision,
        seed=settings.seed,
    )


def require_same_settings(folders: Sequence[Path]) -> None:
    """Check that the folders agree in every file but the weights.

    Raises:
        StageError: A folder is missing, or a file differs; the message names both folders.
    """
    first = _settings_files(folders[0])
    for folder in folders[1:]:
        other = _settings_files(folder)
        differing = sorted(
            name for name in first.keys() | other.keys() if first.get(name) != other.get(name)
        )
        if differing:
            raise StageError(
                f"{folders[0]} and {folder} differ in {differing}: only variants with one "
                "configuration and one tokenizer can be merged; train them from one model"
            )


def _settings_files(folder: Path) -> dict[str, bytes]:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }
    if "config.json" not in files:
        raise StageError(f"{folder} holds no model: run the stage that writes it (dvc repro)")
    # where the weights were loaded from is no setting
    config = json.loads(files["config.json"])
    config.pop("_name_or_path", None)
    return files | {"config.json": json.dumps(config, sort_keys=True).encode()}
