"""Batches of training examples that tell Self Positioning how good a merged model is.

Shape letters: B = queries, M = texts of a batch, D = embedding size, R = probe rows of a source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from model.encoder.encoder import Encoder
from model.encoder.export import PROJECTION_FOLDER, PROJECTION_PREFIX
from model.encoder.pooling.build import kind_of
from model.encoder.precision import Precision, decoder_autocast
from model.encoder.tokenization import token_budget_batches
from model.training.data.batches import SourceReader
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.team import Team
from model.training.objective.objective import objective_of
from model.training.settings import LossSettings, TrainingSource


@dataclass(frozen=True)
class ProbeSettings:
    """Values of a probe; every field is required."""

    examples: int
    """Rows over all sources; each source gives an equal share, or all it has."""
    batch_size: int
    """Queries per step, all of one source."""
    hard_negatives: int
    """Explicit negatives per query; a row with fewer gives what it has."""
    loss: str
    """Name of a preset of `model.losses.presets`."""
    temperature: float
    """Divides the cosine."""
    max_length_tokens: int
    micro_batch_tokens: int
    """Tokens whose activations are held at once."""
    precision: Precision
    seed: int


class Probe:
    """Contrastive loss of an encoder on the probe batch of any step; the sources take turns."""

    def __init__(
        self,
        encoder: Encoder,
        sources: Sequence[TrainingSource],
        settings: ProbeSettings,
    ) -> None:
        """Draw the probe rows; graded sources have no InfoNCE and are left out.

        Args:
            encoder: Scored as it stands at each call; switched to evaluation mode.
            sources: Training examples.
            settings: The numbers.

        Raises:
            ValueError: No source is left.
        """
        self._encoder = encoder.eval()
        self._settings = settings
        ungraded = [source for source in sources if not source.is_graded]
        if not ungraded:
            names = [source.name for source in sources]
            raise ValueError(
                f"no probe can be made of the sources {names}: it needs a task other than sts"
            )
        share = max(1, settings.examples // len(ungraded))
        self._rows = [
            np.sort(self._rng(1, number).permutation(source.table.num_rows)[:share])
            for number, source in enumerate(ungraded)
        ]
        self._sources = [
            SourceReader(source, encoder.tokenizer, settings.max_length_tokens)
            for source in ungraded
        ]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, *key])

    def backward(self, step: int) -> float:
        """Add the gradient of the loss of a step, counted from 0, to the parameters; return it."""
        settings, encoder = self._settings, self._encoder
        turn, place = divmod(step, len(self._sources))
        number = int(self._rng(2, turn).permutation(len(self._sources))[place])
        source, rng = self._sources[number], self._rng(3, step)
        rows = rng.permutation(self._rows[number])[: settings.batch_size]
        batch = source.batch(rows, settings.hard_negatives, rng)
        objective = objective_of(
            batch,
            is_in_batch=source.source.is_in_batch,
            loss=LossSettings(settings.loss, settings.temperature),
            sizes=[encoder.embedding_size],
            device=encoder.device,
        )
        micro_batches = token_budget_batches(
            [len(item.ids) for item in batch.items],
            settings.micro_batch_tokens,
            is_packed=encoder.is_packed,
        )

        def embed(micro_batch: list[int]) -> Tensor:
            with decoder_autocast(encoder.device, settings.precision):
                return encoder.embed([batch.items[text] for text in micro_batch])

        backward = cached_backward if len(micro_batches) > 1 else plain_backward
        return float(
            backward(embed, micro_batches, len(batch.items), objective.loss_and_gradient, Team())
        )


def parameters_by_tensor(encoder: Encoder) -> dict[str, nn.Parameter]:
    """Parameters of an encoder under the names their tensors have in its folder."""
    subfolder = kind_of(encoder.settings.kind).folder
    found = dict(encoder.backbone.named_parameters())
    found |= {
        f"{subfolder}/{name}": parameter for name, parameter in encoder.pooling.named_parameters()
    }
    if encoder.projection is not None:
        found |= {
            f"{PROJECTION_FOLDER}/{PROJECTION_PREFIX}{name}": parameter
            for name, parameter in encoder.projection.named_parameters()
        }
    return found
