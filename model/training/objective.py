"""The loss of one batch as a function of its embeddings, row by row, and what it was made of.

Shape letters: B = rows, N = documents, M = B + N texts, R = rows of a slice,
Q = remembered documents, D = embedding size.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.losses.contrastive import Similarities, contrastive_loss
from model.losses.matryoshka import matryoshka_mean
from model.losses.presets import PRESETS, Preset
from model.losses.spread_out import spread_out
from model.losses.terms import EXPLICIT_TERMS, Term
from model.training.batches import Batch
from model.training.candidates import CandidateCounts, Candidates, ScoreMasks
from model.training.frozen import NO_VECTORS, FrozenVectors
from model.training.graded_objective import GradedObjective
from model.training.loss_parts import LossParts
from model.training.own_terms import OwnTerms
from model.training.settings import LossSettings
from model.training.teacher_terms import TeacherTerms
from model.training.team import Team

NOT_IN_BATCH: tuple[Term, ...] = (*EXPLICIT_TERMS, "memory")
"""Terms whose negatives were chosen for the row or come from earlier batches."""
NUMBERS_AT_ONCE = 4 * 1024 * 1024
"""Similarities that exist at once in each term: the loss of a large batch needs no large matrix."""


class ContrastiveObjective:
    """A contrastive loss and what is added to it, computed in slices of rows.

    Masks are made once per slice, from texts and from scores at full dimension, and serve all
    Matryoshka sizes. The counts are those of this process until `add_up_counts`.
    """

    def __init__(
        self,
        batch: Batch,
        preset: Preset,
        loss: LossSettings,
        *,
        sizes: list[int],
        device: torch.device,
        frozen: FrozenVectors,
    ) -> None:
        student = preset.student_margin if loss.use_student_margin else None
        if loss.options.guide is not None and frozen.guide_MD is None:
            raise ValueError("the loss is masked by a guide, but there is none: set guide")
        if loss.options.guide is not None and batch.memory_QD is not None:
            raise ValueError(
                "a guide has no vectors of remembered documents: leave out one of both"
            )
        masks = ScoreMasks(student, loss.options.guide, frozen.guide_MD)
        self._candidates = Candidates(batch.texts, masks, device)
        softmaxes = preset.loss.softmaxes
        self._settings = replace(
            preset.loss,
            softmaxes=softmaxes if batch.memory_QD is None else _with_memory(softmaxes),
            temperature=loss.temperature,
            hardness=loss.hardness,
        )
        self._memory_QD = batch.memory_QD
        self._spread_out = loss.spread_out
        self._weights = loss.options.matryoshka_weights
        self._sizes = sizes
        self._device = device
        self._own = OwnTerms(batch, loss, device)
        self._teacher = TeacherTerms(batch, loss, sizes, frozen.teacher_MD)
        names = ["contrastive", *(["spread_out"] if loss.spread_out else [])]
        self._parts = LossParts([*names, *self._own.names, *self._teacher.names], device)
        self._counts = CandidateCounts()
        self._num_rows = batch.num_queries
        self.soft_label_rows = 0

    def shares(self, embedding_MD: Tensor, team: Team) -> Iterator[Tensor]:
        """Shares of the loss of the (M, D) embeddings, one per slice of rows of this process.

        Over all processes they add up to the loss.
        """
        num_rows = self._num_rows
        width = max(1, NUMBERS_AT_ONCE // len(embedding_MD))
        width = min(width, -(-num_rows // team.size))
        starts = range(0, num_rows, width)
        for start in starts[team.rank :: team.size]:
            yield self._share(embedding_MD, slice(start, min(start + width, num_rows)))

    def add_up_counts(self, team: Team) -> None:
        """Make the counts those of the whole batch, when every process has used up its shares."""
        terms: list[Term] = [term for terms in self._settings.softmaxes for term in terms]
        self._counts.add_up(terms, team, self._device)
        labelled = torch.tensor(self.soft_label_rows, device=self._device)
        self.soft_label_rows = int(team.add_up(labelled))
        self._parts.add_up(team)

    def _share(self, embedding_MD: Tensor, rows: slice) -> Tensor:
        num_rows = self._num_rows
        full = self._similarities(embedding_MD, rows)
        allowed = [
            self._candidates.allowed(terms, full, self._counts)
            for terms in self._settings.softmaxes
        ]

        def of_rows(prefix_MD: Tensor) -> Tensor:
            cut = self._similarities(prefix_MD, rows)
            return contrastive_loss(cut, allowed, self._settings)

        parts = {"contrastive": matryoshka_mean(of_rows, embedding_MD, self._sizes, self._weights)}
        if self._spread_out:
            positive_BD = full.document_ND[:num_rows]
            parts["spread_out"] = self._spread_out * spread_out(full.query_BD, positive_BD, rows)
        parts |= self._own_parts(embedding_MD, full)
        for name in self._teacher.names:
            parts[name] = self._teacher.of(name, embedding_MD, rows)
        return self._parts.join(parts) / num_rows

    def _similarities(self, prefix_MD: Tensor, rows: slice) -> Similarities:
        """Of the slice, with remembered documents cut to the size of the prefix."""
        memory_QD = self._memory_QD
        if memory_QD is not None:
            memory_QD = F.normalize(memory_QD[:, : prefix_MD.shape[1]], dim=-1)
        num_rows = self._num_rows
        return Similarities(prefix_MD[:num_rows], prefix_MD[num_rows:], rows, memory_QD)

    def _own_parts(self, embedding_MD: Tensor, full: Similarities) -> dict[str, Tensor]:
        if not self._own.names:
            return {}
        own = self._candidates.own_negatives(full)
        self.soft_label_rows += self._own.labelled_rows(own, full.rows)
        return {
            name: matryoshka_mean(
                lambda prefix_MD, name=name: self._own.of(name, prefix_MD, own, full.rows),
                embedding_MD,
                self._sizes,
                self._weights,
            )
            for name in self._own.names
        }

    @property
    def losses(self) -> dict[str, float]:
        """The terms of the loss, weights included; they add up to it."""
        return {name: total / self._num_rows for name, total in self._parts.values().items()}

    @property
    def in_batch_negatives(self) -> float:
        """Candidates in the batch nobody chose for the row, allowed by texts, mean over rows."""
        every = sum(self._counts.texts.allowed.values())
        return (every - self._count(*NOT_IN_BATCH)) / self._num_rows

    @property
    def hard_negatives(self) -> float:
        """Own hard negatives allowed by the texts, mean over rows."""
        return self._count(*EXPLICIT_TERMS) / self._num_rows

    @property
    def memory_negatives(self) -> float:
        """Documents of earlier batches allowed by the texts, mean over rows."""
        return self._count("memory") / self._num_rows

    @property
    def masked_share(self) -> float:
        """Candidates dropped by the text mask over all candidates."""
        return self._counts.texts.masked_share

    @property
    def masked_by_score(self) -> float:
        """Candidates dropped by the student's margin over those the texts allow."""
        return self._counts.by_student / max(1, sum(self._counts.texts.allowed.values()))

    @property
    def masked_by_guide(self) -> float:
        """Candidates dropped by the frozen guide over those the texts allow."""
        return self._counts.by_guide / max(1, sum(self._counts.texts.allowed.values()))

    def _count(self, *terms: Term) -> int:
        return sum(self._counts.texts.allowed.get(term, 0) for term in terms)


def _with_memory(softmaxes: tuple[tuple[Term, ...], ...]) -> tuple[tuple[Term, ...], ...]:
    """Remembered documents stand wherever the positives of other rows do."""
    return tuple((*terms, "memory") if "other_positives" in terms else terms for terms in softmaxes)


Objective = GradedObjective | ContrastiveObjective


def objective_of(
    batch: Batch,
    *,
    is_in_batch: bool,
    loss: LossSettings,
    sizes: list[int],
    device: torch.device,
    frozen: FrozenVectors = NO_VECTORS,
) -> Objective:
    """The graded loss for a batch with scores, the preset with its options for any other.

    A task whose other rows are no safe negatives (`is_in_batch` false: classes and clusters) is
    set against its own hard negatives alone, whatever the preset.

    Raises:
        ValueError: The loss asks for a guide or a teacher that `frozen` has no vectors of, or for
            a teacher's vectors at a size that is no embedding of both models.
    """
    if batch.scores is not None:
        return GradedObjective(batch, loss, sizes=sizes, device=device, frozen=frozen)
    preset, options = PRESETS[loss.name if is_in_batch else "nv-embed-2"], loss.options
    if options.softmaxes is not None and is_in_batch:
        softmaxes = tuple(tuple(terms) for terms in options.softmaxes)
        preset = replace(preset, loss=replace(preset.loss, softmaxes=softmaxes))
    if options.student_margin is not None:
        preset = replace(preset, student_margin=options.student_margin)
    return ContrastiveObjective(batch, preset, loss, sizes=sizes, device=device, frozen=frozen)
