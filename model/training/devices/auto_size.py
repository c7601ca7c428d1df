"""The largest micro-batch that fits a GPU, found once per machine and model by trying.

Every try is a forward and a backward pass of texts of the greatest length beside the moments that
the optimiser is going to hold. The answer is kept in a file: a later training on such a machine
with batches of such a size needs no try. A processor is not tried: its memory is not what bounds a
micro-batch.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from model.encoder.encoder import Encoder
from model.encoder.precision import decoder_autocast
from model.encoder.tokenization import TokenizedText
from model.training.devices.micro_batches import FEWEST_TOKENS
from model.training.devices.team import Team
from model.training.devices.wrapping import wrapped_for_training
from model.training.settings import TrainSettings
from model.writing import writing

CPU_TOKENS = 4096
"""Micro-batch of a training on a processor: larger ones were no faster on two cores."""


def with_fitting_micro_batches(
    encoder: Encoder, settings: TrainSettings, file: Path, team: Team
) -> TrainSettings:
    """The settings with the largest micro-batch that fits on every process.

    Args:
        encoder: On its device; its weights stay as they are.
        settings: Decide what a training holds; their micro_batch_tokens are not read.
        file: JSON of what was found before, on this machine or others.
        team: The processes of the training.
    """
    if encoder.device.type == "cpu":
        return replace(settings, micro_batch_tokens=CPU_TOKENS)
    longest = settings.max_length_tokens
    most = settings.batch_size * (2 + settings.hard_negatives) * longest
    with wrapped_for_training(encoder, settings, team) as trained:
        tokens = remembered(
            file,
            _key(trained, settings, most),
            lambda: largest_fitting(lambda size: try_size(trained, settings, size), most),
            team,
        )
    return replace(settings, micro_batch_tokens=team.least(tokens))


def largest_fitting(attempt: Callable[[int], None], most: int) -> int:
    """The last of 256, 512, 1024, ... tokens that `attempt` has memory for.

    Sizes from `most` on are not tried; the smallest is the answer even if it does not fit either,
    and the first step says so.
    """
    tokens = FEWEST_TOKENS
    while tokens < most:
        try:
            attempt(2 * tokens)
        except torch.OutOfMemoryError:
            break
        tokens *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return tokens


def try_size(encoder: Encoder, settings: TrainSettings, tokens: int) -> None:
    """Take the passes of one micro-batch; nothing of it is left.

    Raises:
        torch.OutOfMemoryError: It does not fit.
    """
    trained = [p for p in encoder.train().parameters() if p.requires_grad]
    moments = [torch.empty_like(p) for p in trained for _ in range(2)]
    length = min(settings.max_length_tokens, tokens)
    items = [TokenizedText([encoder.pad_id] * length, 0)] * (tokens // length)
    try:
        with decoder_autocast(encoder.device, settings.precision):
            embedding = encoder.embed(items)
        embedding.square().sum().backward()
    finally:
        encoder.zero_grad(set_to_none=True)
        moments.clear()


def remembered(file: Path, key: str, find: Callable[[], int], team: Team) -> int:
    """The number kept under `key` in `file`, found and kept now if there is none."""
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    # processes of one team decide alike, whatever the file of each says
    if team.any(key not in known):
        known[key] = find()
        if team.leads:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            with writing(partial):
                partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
                partial.replace(file)
    return known[key]


def _key(encoder: Encoder, settings: TrainSettings, most: int) -> str:
    """Name of the machine, and hash of all that decides which answer is found.

    Sizes beyond a batch are not tried, so what a small batch found is no limit for a larger one.
    """
    machine = torch.cuda.get_device_properties(encoder.device)
    names = (
        "max_length_tokens",
        "precision",
        "activation_checkpointing",
        "compile_blocks",
        "lora",
    )
    values = asdict(settings)
    facts = [
        torch.__version__,
        encoder.backbone.config.to_json_string(),
        str(encoder.settings),
        sum(p.numel() for p in encoder.parameters()),
        # the largest size that would be tried
        largest_fitting(lambda _: None, most),
        *(values[name] for name in names),
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return f"{machine.name}, {machine.total_memory} bytes, {digest}"
