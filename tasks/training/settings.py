"""Sections of params.yaml as the plain values of the trainer, field by field of the same name."""

from dataclasses import is_dataclass
from typing import TypeVar, get_args, get_type_hints

from model.encoder.precision import Precision
from model.losses.presets import PRESETS
from model.training.objective.loss_options import LossOptions
from model.training.settings import TrainSettings
from tasks.params.base import Section
from tasks.params.training import Training

Settings = TypeVar("Settings")


def settings_of(section: Section, kind: type[Settings], **given: object) -> Settings:
    """A dataclass of the values that the section has under the names of its fields.

    A section within it becomes the dataclass that the field is annotated with.

    Args:
        section: Validated values; properties count as well as keys.
        kind: Dataclass whose fields are looked up, every one.
        given: Values of fields that the section does not have, or not in that form.

    Raises:
        TypeError: A field is neither in the section nor given: the two have grown apart.
    """
    hints, values = get_type_hints(kind), dict(given)
    for name in hints.keys() - given.keys():
        if not hasattr(section, name):
            raise TypeError(f"{kind.__name__} has a field {name}, but {type(section).__name__} not")
        value = getattr(section, name)
        is_section = isinstance(value, Section)
        values[name] = settings_of(value, _dataclass_in(hints[name])) if is_section else value
    return kind(**values)


def train_settings(
    training: Training,
    precision: Precision,
    *,
    shard_weights: bool = False,
    compile_blocks: bool = False,
) -> TrainSettings:
    """The section as plain values for the trainer; micro-batches of `auto` are yet to be sized."""
    return settings_of(
        training,
        TrainSettings,
        options=settings_of(training, LossOptions),
        temperature=temperature_of(training.loss, training.temperature),
        micro_batch_tokens=training.tokens_at_once,
        precision=precision,
        shard_weights=shard_weights,
        compile_blocks=compile_blocks,
    )


def temperature_of(loss: str, given: float | None) -> float:
    """What divides the cosine: the value of params.yaml, or for null that of the published loss."""
    return PRESETS[loss].loss.temperature if given is None else given


def _dataclass_in(hint: object) -> type:
    """The dataclass of an annotation that may allow None too."""
    [found] = [
        kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)
    ]
    return found
