"""mteb's encoder protocol over a rung, which encodes every text of a run once."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from mteb import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType

from tasks.evaluate.instructions import Instructions
from tasks.evaluate.rungs import Rung
from tasks.evaluate.threads import use_threads

logger = logging.getLogger(__name__)


class Embedder(AbsEncoder):
    """A rung as mteb sees it; cosine similarity comes from the base class."""

    def __init__(self, rung: Rung, instructions: Instructions, *, threads: int) -> None:
        self.rung = rung
        self.instructions = instructions
        self.threads = threads
        self.mteb_model_meta = ModelMeta.create_empty()
        self.encoded_texts = 0
        self._vectors: dict[tuple[str, bool, str], np.ndarray] = {}

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,  # noqa: ARG002 - protocol of mteb
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **kwargs: object,  # noqa: ARG002
    ) -> np.ndarray:
        """Vectors of the texts of `inputs` in their order, shape (texts, dimension)."""
        prefix = self.instructions.prefix(task_metadata, prompt_type)
        texts = [text for batch in inputs for text in batch["text"]]
        is_document = prompt_type is PromptType.document
        keys = [(prefix, is_document, text) for text in texts]
        # A dict keeps the order and drops repetitions: the batches are the same on every run.
        missing = list(dict.fromkeys(key for key in keys if key not in self._vectors))
        if missing:
            with use_threads(self.threads):
                vectors = self.rung.encode(
                    [text for _, _, text in missing], prefix, is_document=is_document
                )
            self._vectors.update(zip(missing, vectors, strict=True))
            self.encoded_texts += len(missing)
        return np.stack([self._vectors[key] for key in keys])
