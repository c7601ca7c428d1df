"""LoRA: the decoder stays as it is, small matrices beside some of its layers are trained.

A layer of weight W gives (W + s B A) x with s = alpha / rank; only A and B, and the pooling, get
gradients and moments. At the end s B A is added to W and nothing of the method is left: merging
models by averaging A and B apart would not average their product.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

import logging

import numpy as np
import torch

from model.encoder.encoder import Encoder
from model.training.settings import LoraSettings

logger = logging.getLogger(__name__)


class Adapters:
    """The matrices that are trained, until they are merged."""

    def __init__(self, encoder: Encoder, settings: LoraSettings, seed: int) -> None:
        """Put adapters into the decoder of `encoder` and freeze the rest of it.

        A is drawn from `seed`, B is zero: the encoder gives the vectors that it gave before.

        Raises:
            ValueError: A target is no module of the decoder, or no layer that can be adapted.
        """
        # its import takes seconds, which a full training need not wait
        from peft import LoraConfig, LoraModel

        _check_targets(encoder, settings.target_modules)
        self._encoder = encoder
        torch.manual_seed(int(np.random.SeedSequence([seed, 4]).generate_state(1)[0]))
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.target_modules),
        )
        self._model = LoraModel(encoder.backbone, config, "default")
        trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        every = sum(p.numel() for p in encoder.parameters())
        logger.info("LoRA trains %d of %d weights", trained, every)

    def merge(self) -> None:
        """Add the products to the weights and take the adapters out: a plain encoder remains."""
        self._model.merge_and_unload(progressbar=False)
        self._encoder.backbone.requires_grad_(True)


def _check_targets(encoder: Encoder, targets: tuple[str, ...]) -> None:
    layers = {
        name
        for name, module in encoder.backbone.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    unknown = [
        target
        for target in targets
        if not any(f".{name}".endswith(f".{target}") for name in layers)
    ]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise ValueError(
            f"lora.target_modules names {', '.join(unknown)}, but the linear layers of the decoder "
            f"are {known}"
        )
