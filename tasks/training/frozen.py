"""The frozen models of a training section: which folders they are, and loading them."""

from pathlib import Path

import torch

from model.encoder.encoder import Encoder
from model.training.data.recorded_vectors import RecordedVectors
from model.training.objective.frozen import FrozenModel, FrozenModels, RecordedModel
from tasks.params.load import Params
from tasks.params.losses import Frozen, Teacher
from tasks.params.paths import ARTIFACTS
from tasks.params.training import Training


def frozen_folders(training: Training) -> list[Path]:
    """Model folders of guide and teacher, each once."""
    wanted = [frozen for frozen in (training.guide, training.teacher) if frozen is not None]
    return list(dict.fromkeys(_folder(frozen) for frozen in wanted))


def _folder(frozen: Frozen) -> Path:
    name = frozen.recorded_by
    return ARTIFACTS / frozen.checkpoint if name is None else ARTIFACTS / "teach/vectors" / name


def load_frozen(params: Params, training: Training, device: torch.device) -> FrozenModels:
    """Guide and teacher in the type they are stored in, or what was recorded of them; each once.

    Raises:
        ValueError: A folder is missing or is no model.
    """
    loaded: dict[tuple[str, str | None, str | None], FrozenModel] = {}

    def load(frozen: Frozen | None) -> FrozenModel | RecordedModel | None:
        if frozen is None:
            return None
        if frozen.recorded_by is not None:
            whitening = frozen.whitening if isinstance(frozen, Teacher) else None
            vectors = RecordedVectors(_folder(frozen), whitening=whitening)
            return RecordedModel(vectors, device)
        key = (frozen.checkpoint, frozen.query_prompt, frozen.document_prompt)
        if key not in loaded:
            encoder = Encoder.load(
                ARTIFACTS / frozen.checkpoint,
                device=device,
                attn_implementation=params.backbone.attn_implementation,
            )
            loaded[key] = FrozenModel(encoder, *key[1:], training.max_length_tokens)
        return loaded[key]

    return FrozenModels(guide=load(training.guide), teacher=load(training.teacher))
