"""A training section becomes the trainer's values by the names of the fields, and none is lost."""

from dataclasses import dataclass

import pytest

from model.losses.false_negatives import FalseNegativeSettings
from model.training.objective.loss_options import DivergenceSettings, LossOptions, MatchingSettings
from model.training.settings import LoraSettings, TrainSettings
from tasks.params.load import load_params
from tasks.params.training import Training
from tasks.training.settings import settings_of, train_settings
from tests.unit.training_workspace import PROFILE

READ_ELSEWHERE = {"teacher"}
"""Its terms are properties of the section, its model is loaded by tasks.training.frozen."""
MASK = {"margin": 0.1, "kind": "relative", "in_batch": False, "explicit": True}
MODEL = {"checkpoint": "prune/model", "query_prompt": None, "document_prompt": None}


def training(**changes: object) -> Training:
    section = load_params(PROFILE).pretrain.training.model_dump()
    return Training.model_validate(section | changes)


def test_every_key_of_the_section_is_a_field_of_the_trainer() -> None:
    known = TrainSettings.__dataclass_fields__.keys() | LossOptions.__dataclass_fields__.keys()
    assert Training.model_fields.keys() - known == READ_ELSEWHERE


def test_every_value_arrives_under_its_name() -> None:
    section = training(
        micro_batch_tokens="auto",
        lora={"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj"]},
        student_margin=MASK,
        guide=MODEL | MASK,
        soft_labels={"weight": 0.5, "teacher_temperature": 0.05},
        teacher=MODEL
        | {
            "embeddings": {"weight": 2.0, "size": 8},
            "similarities": None,
            "whitening": None,
            "fit_texts": 100,
        },
        matryoshka_weights={8: 0.5},
    )
    made = train_settings(section, "bf16", compile_blocks=True)
    plain = {"lora", "micro_batch_tokens"}
    for name in Training.model_fields.keys() & TrainSettings.__dataclass_fields__.keys() - plain:
        assert getattr(made, name) == getattr(section, name), name
    assert (made.precision, made.compile_blocks, made.shard_weights) == ("bf16", True, False)
    assert made.micro_batch_tokens == section.tokens_at_once
    assert made.fit_texts == 100
    assert made.lora == LoraSettings(4, 8, 0.1, ["q_proj"])  # pyright: ignore[reportArgumentType]
    assert made.options == LossOptions(
        student_margin=FalseNegativeSettings(0.1, "relative", in_batch=False, explicit=True),
        guide=FalseNegativeSettings(0.1, "relative", False, True, except_terms=()),
        soft_labels=DivergenceSettings(0.5, teacher_temperature=0.05),
        embeddings=MatchingSettings(2.0, size=8),
        matryoshka_weights={8: 0.5},
    )


def test_a_field_that_the_section_does_not_have_is_an_error() -> None:
    @dataclass
    class Wider:
        temperature: float
        unheard_of: int = 0

    with pytest.raises(TypeError, match="Wider has a field unheard_of, but Training not"):
        settings_of(training(), Wider)
