"""Terms that imitate a frozen teacher: its vectors, and its choice among the documents.

Both are of the full batch, whatever its task, and of one size of the embeddings.

Shape letters: B = rows, N = documents (B positives, then hard negatives), M = B + N texts,
R = rows of a slice, C = documents of different texts, D = embedding size.
"""

import numpy as np
import torch
from torch import Tensor

from model.losses.divergence import divergence
from model.losses.embedding_matching import check_sizes, embedding_matching
from model.training.data.batches import Batch
from model.training.settings import LossSettings


class TeacherTerms:
    """The terms that the settings ask for; without any there is nothing to compute."""

    def __init__(
        self, batch: Batch, loss: LossSettings, sizes: list[int], teacher_MD: Tensor | None
    ) -> None:
        """Take the teacher's vectors of all texts of the batch.

        Raises:
            ValueError: Vectors are to be matched at a size that is no embedding of both models, or
                there are none of the teacher.
        """
        options = loss.options
        self._matching, self._similarities = options.embeddings, options.similarities
        wanted = {"embeddings": self._matching, "similarities": self._similarities}
        self.names = [name for name, settings in wanted.items() if settings is not None]
        if not self.names:
            return
        if teacher_MD is None:
            raise ValueError(f"the loss terms {self.names} need a teacher: set teacher")
        self._teacher_MD = teacher_MD
        self._temperature = loss.temperature
        self._num_rows = batch.num_queries
        self._owner_N = batch.texts.owners
        distinct_C = np.sort(np.unique(batch.texts.documents, return_index=True)[1])
        self._distinct_C = torch.from_numpy(distinct_C).to(teacher_MD.device)
        if self._matching is not None:
            self._size = self._matching.size or sizes[0]
            check_sizes(self._size, sizes, teacher_MD.shape[1])

    def of(self, name: str, embedding_MD: Tensor, rows: slice) -> Tensor:
        """A term with its weight, summed over the rows, of embeddings at their full size."""
        if name == "embeddings" and self._matching is not None:
            return self._matching.weight * self._distances(embedding_MD, rows)
        assert self._similarities is not None  # noqa: S101 - the names hold no other
        temperature = self._similarities.teacher_temperature
        student_RC = self._cosines(embedding_MD, rows) / self._temperature
        teacher_RC = self._cosines(self._teacher_MD, rows) / temperature
        everything_RC = torch.ones_like(teacher_RC, dtype=torch.bool)
        return self._similarities.weight * divergence(student_RC, teacher_RC, everything_RC)

    def _cosines(self, embedding_MD: Tensor, rows: slice) -> Tensor:
        """Of the queries with each text among the documents once, (R, C)."""
        query_RD = embedding_MD[: self._num_rows][rows].float()
        return query_RD @ embedding_MD[self._num_rows :][self._distinct_C].float().T

    def _distances(self, embedding_MD: Tensor, rows: slice) -> Tensor:
        """Means over queries, positives and hard negatives, added up, times the rows' share."""
        num_rows, num_texts = self._num_rows, len(embedding_MD)
        row_R = np.arange(num_rows)[rows]
        negative_P = np.flatnonzero(np.isin(self._owner_N[num_rows:], row_R)) + 2 * num_rows
        share_of_side = num_rows / max(1, num_texts - 2 * num_rows)
        total = embedding_MD.new_zeros((), dtype=torch.float32)
        for text_P, factor in (
            (row_R, 1.0),
            (row_R + num_rows, 1.0),
            (negative_P, share_of_side),
        ):
            place_P = torch.from_numpy(text_P).to(embedding_MD.device)
            student_PD = embedding_MD[place_P][:, : self._size]
            teacher_PD = self._teacher_MD[place_P][:, : self._size]
            total = total + factor * embedding_matching(student_PD, teacher_PD)
        return total
