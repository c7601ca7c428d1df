"""The projection fitted to a teacher: the closed form, its texts, and a training that begins so."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from model.training.data.batches import Step
from model.training.objective.frozen import FrozenModels
from model.training.objective.loss_options import LossOptions, MatchingSettings
from model.training.projection_fit import RIDGE, ProjectionFit
from model.training.settings import TrainingSource
from model.training.step_log import StepRecord, read_records
from model.training.trainer import train
from tests.unit.test_trainer import SETTINGS, assert_same_weights, source_of, weights_of

SIZE = 12


class StoppedError(Exception):
    """Somebody pulled the plug."""


class LinearTeacher:
    """Says what a hidden map makes of the pooled states that the student begins with."""

    def __init__(self, student: Encoder, size: int = SIZE) -> None:
        self._student = student
        generator = torch.Generator().manual_seed(5)
        hidden = student.backbone.config.hidden_size
        self.weight_DH = torch.randn((size, hidden), generator=generator)

    def embed(self, step: Step, *_: Any) -> torch.Tensor:
        with torch.no_grad():
            pooled = self._student.pooled(step.items)
        return torch.nn.functional.normalize(pooled @ self.weight_DH.T, dim=-1)


@pytest.fixture
def sources(pico_texts: list[str]) -> list[TrainingSource]:
    return [source_of(pico_texts, [0] * 24)]


def student_of(pico_encoder: Encoder) -> Encoder:
    settings = PoolingSettings(kind="mean", projection=SIZE)
    encoder = Encoder(pico_encoder.backbone, pico_encoder.tokenizer, settings, max_length_tokens=64)
    return encoder.float()


def test_the_fit_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    states = rng.normal(size=(200, 9)) * 10.0 ** np.arange(-4, 5) + 3.0
    wanted = rng.normal(size=(200, 4))
    fit = ProjectionFit(9, 4)
    for rows in np.array_split(np.arange(200), 7):
        fit.add(torch.from_numpy(states[rows]), torch.from_numpy(wanted[rows]))
    # one penalty for all states is theirs: states of unit length per column make both the same
    scale = np.sqrt((states**2).sum(axis=0))
    theirs = Ridge(alpha=RIDGE, fit_intercept=False, solver="cholesky").fit(states / scale, wanted)
    np.testing.assert_allclose(fit.solve().numpy(), theirs.coef_ / scale, rtol=1e-6)


def test_a_state_that_is_always_zero_has_no_say() -> None:
    fit = ProjectionFit(3, 2)
    states = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, -1.0], [2.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    fit.add(states, torch.randn(4, 2))
    weight_DH = fit.solve()
    assert weight_DH.isfinite().all()
    assert not weight_DH[:, 1].any()


def train_by(
    encoder: Encoder,
    sources: list[TrainingSource],
    folder: Path,
    teacher: LinearTeacher | None,
    **options: Any,
) -> list[StepRecord]:
    matching = LossOptions(embeddings=MatchingSettings(weight=1.0, size=None))
    settings = dataclasses.replace(
        SETTINGS, matryoshka_dims=(), options=matching, contrastive_weight=0.0, hard_negatives=0,
        fit_texts=40, **options,
    )  # fmt: skip
    train(
        encoder,
        sources,
        checkpoint_folder=folder / "checkpoints",
        log_path=folder / "training.jsonl",
        settings=settings,
        frozen=FrozenModels(teacher=teacher),  # pyright: ignore[reportArgumentType]
    )
    return read_records(folder / "training.jsonl")


def test_what_a_teacher_says_of_the_states_is_said_from_the_first_step(
    pico_encoder: Encoder, sources: list[TrainingSource], tmp_path: Path
) -> None:
    student = student_of(pico_encoder)
    teacher = LinearTeacher(student_of(pico_encoder))
    [first] = train_by(student, sources, tmp_path, teacher, max_steps=1, warmup_steps=0)
    # summed squared distance of unit vectors, of query and document: 4 for unrelated ones
    assert first.report.losses["embeddings"] < 0.4
    assert set(first.report.losses) == {"embeddings"}


def test_a_training_that_goes_on_is_not_fitted_again(
    pico_encoder: Encoder, sources: list[TrainingSource], tmp_path: Path
) -> None:
    whole, cut = (student_of(copy.deepcopy(pico_encoder)) for _ in range(2))
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    teacher = LinearTeacher(student_of(copy.deepcopy(pico_encoder)))
    train_by(whole, sources, tmp_path / "whole", teacher, checkpoint_every_steps=3)

    class Failing(LinearTeacher):
        asked = 0

        def embed(self, step: Step, *rest: Any) -> torch.Tensor:
            self.asked += 1
            if self.asked > 9:
                raise StoppedError
            return super().embed(step, *rest)

    with pytest.raises(StoppedError):
        train_by(
            cut, sources, tmp_path / "cut", Failing(student_of(copy.deepcopy(pico_encoder))),
            checkpoint_every_steps=3,
        )  # fmt: skip
    again = student_of(copy.deepcopy(pico_encoder))
    train_by(again, sources, tmp_path / "cut", teacher, checkpoint_every_steps=3)
    assert_same_weights(weights_of(again), weights_of(whole))


def test_two_processes_would_pool_each_its_share(
    pico_encoder: Encoder, pico_texts: list[str]
) -> None:
    """The states of a text do not depend on the texts that are pooled beside it."""
    student = student_of(pico_encoder)
    items = student.tokenize(pico_texts)
    with torch.no_grad():
        together = student.pooled(items)
        apart = torch.cat([student.pooled([item]) for item in items])
        projected = torch.nn.functional.normalize(student.projection(together), dim=-1)  # pyright: ignore[reportOptionalCall]
        embedded = student.embed(items)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedded, projected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [(None, "set both"), (SIZE + 3, "backbone.projection to 15")],
)
def test_a_fit_that_cannot_be_is_refused_before_the_first_step(
    pico_encoder: Encoder,
    sources: list[TrainingSource],
    tmp_path: Path,
    teacher: int | None,
    said: str,
) -> None:
    student = student_of(pico_encoder)
    other = None if teacher is None else LinearTeacher(student, teacher)
    with pytest.raises(ValueError, match=said):
        train_by(student, sources, tmp_path, other)
    assert not (tmp_path / "training.jsonl").exists()
