"""Cross-batch memory: documents of recent batches as further negatives, without gradient.

A large batch of negatives at the price of its embeddings. They were made by the weights of some
steps ago, so the queue is to be short, and used only once the weights have settled. A batch meets
documents of its own source alone, as it does within itself, and none where those may be positives.

Shape letters: N = documents of a batch, P = known pairs, Q = remembered documents, D = embedding
size.

Source: Wang et al. 2020, arXiv:1912.06798; in stage 1 of GigaEmbeddings, arXiv:2510.22369.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.training.data.batches import Batch
from model.training.settings import MemorySettings

PREFIX = "memory."


@dataclass(frozen=True)
class _Remembered:
    """The documents of one batch and what is known of them."""

    source: str
    documents: np.ndarray
    """(N,) text hashes."""
    known_queries: np.ndarray
    """(P,) text hashes."""
    known_positives: np.ndarray
    """(P,) text hashes."""
    embedding_ND: Tensor


class DocumentMemory:
    """A queue of batches, the oldest out first; the same on every process of a training."""

    def __init__(self, settings: MemorySettings | None) -> None:
        """Begin empty; without settings it remembers nothing."""
        self._from_step = settings.from_step if settings else 0
        self._queue: deque[_Remembered] = deque(maxlen=settings.batches if settings else 0)

    def add(self, source: str, batch: Batch, document_ND: Tensor) -> None:
        """Remember the documents of a batch of `source`, if its negatives in-batch are safe."""
        if self._queue.maxlen and batch.is_in_batch:
            texts = batch.texts
            self._queue.append(
                _Remembered(
                    source=source,
                    documents=texts.documents,
                    known_queries=texts.known_queries,
                    known_positives=texts.known_positives,
                    embedding_ND=document_ND.detach().clone(),
                )
            )

    def recall(self, step: int, source: str, batch: Batch) -> Batch:
        """The batch with the documents remembered for it, newest first; as it is without any.

        Pairs known from the earlier batches come along: a document that answered a query then is no
        negative of it now.
        """
        texts = batch.texts
        found = [earlier for earlier in reversed(self._queue) if earlier.source == source]
        if step < self._from_step or not found or not batch.is_in_batch:
            return batch
        known_queries = np.concatenate([earlier.known_queries for earlier in found])
        known_positives = np.concatenate([earlier.known_positives for earlier in found])
        is_asked = np.isin(known_queries, texts.queries)
        known = replace(
            texts,
            known_queries=np.concatenate([texts.known_queries, known_queries[is_asked]]),
            known_positives=np.concatenate([texts.known_positives, known_positives[is_asked]]),
            remembered=np.concatenate([earlier.documents for earlier in found]),
        )
        memory_QD = torch.cat([earlier.embedding_ND for earlier in found])
        return replace(batch, texts=known, memory_QD=memory_QD)

    def sources(self) -> list[str]:
        """Source of each remembered batch, oldest first: with `tensors` all that is to be saved."""
        return [batch.source for batch in self._queue]

    def tensors(self) -> dict[str, Tensor]:
        """The numbers of each remembered batch."""
        found: dict[str, Tensor] = {}
        for place, batch in enumerate(self._queue):
            found[f"{PREFIX}{place}.documents"] = torch.tensor(batch.documents)
            found[f"{PREFIX}{place}.known_queries"] = torch.tensor(batch.known_queries)
            found[f"{PREFIX}{place}.known_positives"] = torch.tensor(batch.known_positives)
            found[f"{PREFIX}{place}.embedding"] = batch.embedding_ND
        return found

    def restore(
        self, sources: Sequence[str], tensors: Mapping[str, Tensor], device: torch.device
    ) -> None:
        """Put back what `sources` and `tensors` gave; other names are ignored."""
        self._queue.clear()
        for place, source in enumerate(sources):
            own = f"{PREFIX}{place}."
            self._queue.append(
                _Remembered(
                    source=source,
                    documents=tensors[own + "documents"].numpy(),
                    known_queries=tensors[own + "known_queries"].numpy(),
                    known_positives=tensors[own + "known_positives"].numpy(),
                    embedding_ND=tensors[own + "embedding"].to(device),
                )
            )
