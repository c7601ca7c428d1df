"""The loss of one batch as a function of its embeddings, row by row, and what it was made of.

Shape letters: B = rows, H = hard negatives of all rows, M = 2 B + H texts, R = rows of a slice,
Q = remembered documents, D = embedding size.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.losses.contrastive import Similarities, contrastive_loss
from model.losses.matryoshka import matryoshka_mean, unit_prefixes
from model.losses.presets import PRESETS, Preset
from model.losses.spread_out import spread_out
from model.losses.terms import EXPLICIT_TERMS, Term
from model.training.data.batches import Batch
from model.training.data.candidates import CandidateCounts, Candidates, ScoreMasks
from model.training.devices.team import Team
from model.training.objective.frozen import NO_VECTORS, FrozenVectors
from model.training.objective.graded_objective import GradedObjective
from model.training.objective.graph_cut import GraphCut
from model.training.objective.hard_negative_terms import HardNegativeTerms
from model.training.objective.loss_report import LossReport
from model.training.objective.loss_terms import LossTerms
from model.training.objective.teacher_terms import TeacherTerms
from model.training.settings import LossSettings

NOT_IN_BATCH: tuple[Term, ...] = (*EXPLICIT_TERMS, "memory")
"""Terms whose negatives were chosen for the row or come from earlier batches."""
NUMBERS_AT_ONCE = 4 * 1024 * 1024
"""Similarities that exist at once in each term: the loss of a large batch needs no large matrix."""


class ContrastiveObjective:
    """A contrastive loss and what is added to it, computed in slices of rows.

    Masks are made once per slice, from texts and from scores at full dimension, and serve all
    Matryoshka sizes.
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
        self._own = HardNegativeTerms(batch, loss, device)
        self._teacher = TeacherTerms(batch, loss, sizes, frozen.teacher_MD)
        self._contrastive_weight = loss.contrastive_weight
        names = [
            *(["contrastive"] if loss.contrastive_weight else []),
            *(["spread_out"] if loss.spread_out else []),
        ]
        self._terms = LossTerms([*names, *self._own.names, *self._teacher.names], device)
        self._counts = CandidateCounts()
        self._num_rows = batch.num_queries
        self._labelled_rows = 0

    def loss_and_gradient(self, embedding_MD: Tensor, team: Team) -> tuple[Tensor, Tensor]:
        """This process's share of the loss of the (M, D) embeddings and of its gradient, (M, D).

        The graph of one slice of rows exists at a time. Over all processes both add up to those of
        the batch.
        """
        leaf_MD = embedding_MD.detach().requires_grad_()
        cut = GraphCut()
        full = self._similarities(leaf_MD, cut)
        prefixes = {
            size: self._similarities(prefix_MD, cut)
            for size, prefix_MD in unit_prefixes(leaf_MD, self._sizes).items()
        }
        total = embedding_MD.new_zeros((), dtype=torch.float32)
        for rows in self._slices(team):
            share = self._share(
                leaf_MD,
                replace(full, rows=rows),
                {size: replace(prefix, rows=rows) for size, prefix in prefixes.items()},
            )
            share.backward()
            total += share.detach()
        cut.hand_on()
        return total, torch.zeros_like(leaf_MD) if leaf_MD.grad is None else leaf_MD.grad

    def report(self, team: Team) -> LossReport:
        """What is told of the whole batch; asked once, when every process has scored its rows."""
        every_term: list[Term] = [term for terms in self._settings.softmaxes for term in terms]
        self._counts.add_up(every_term, team, self._device)
        labelled = torch.tensor(self._labelled_rows, device=self._device)
        self._labelled_rows = int(team.add_up(labelled))
        self._terms.add_up(team)
        allowed = sum(self._counts.texts.allowed.values())
        return LossReport(
            in_batch_negatives=(allowed - self._count(*NOT_IN_BATCH)) / self._num_rows,
            hard_negatives=self._count(*EXPLICIT_TERMS) / self._num_rows,
            masked_share=self._counts.texts.masked_share,
            masked_by_score=self._counts.by_student / max(1, allowed),
            masked_by_guide=self._counts.by_guide / max(1, allowed),
            soft_label_rows=self._labelled_rows,
            losses={name: total / self._num_rows for name, total in self._terms.values().items()},
            memory_negatives=self._count("memory") / self._num_rows,
        )

    def _slices(self, team: Team) -> list[slice]:
        """Rows of this process, as many at a time as `NUMBERS_AT_ONCE` allows."""
        num_rows = self._num_rows
        width = max(1, NUMBERS_AT_ONCE // self._candidates.most)
        width = min(width, -(-num_rows // team.size))
        starts = range(0, num_rows, width)[team.rank :: team.size]
        return [slice(start, min(start + width, num_rows)) for start in starts]

    def _similarities(self, embedding_MD: Tensor, cut: GraphCut) -> Similarities:
        """Of all rows, with remembered documents cut to the size of these embeddings."""
        num_rows = self._num_rows
        query_BD, positive_BD, negative_HD = embedding_MD.tensor_split([num_rows, 2 * num_rows])
        memory_QD = self._memory_QD
        if memory_QD is not None:
            memory_QD = F.normalize(memory_QD[:, : embedding_MD.shape[1]], dim=-1)
        return Similarities(
            cut.off(query_BD),
            cut.off(positive_BD),
            cut.off(negative_HD),
            slice(0, num_rows),
            memory_QD,
        )

    def _share(
        self, embedding_MD: Tensor, full: Similarities, prefixes: Mapping[int, Similarities]
    ) -> Tensor:
        """The loss of a slice of rows over the rows of the batch."""
        terms: dict[str, Tensor] = {}
        if self._contrastive_weight:
            terms["contrastive"] = self._contrastive_weight * self._contrastive(full, prefixes)
        if self._spread_out:
            both = full.query_BD, full.positive_BD
            terms["spread_out"] = self._spread_out * spread_out(*both, full.rows)
        terms |= self._own_terms(full, prefixes)
        for name in self._teacher.names:
            terms[name] = self._teacher.of(name, embedding_MD, full.rows)
        return self._terms.join(terms) / self._num_rows

    def _contrastive(self, full: Similarities, prefixes: Mapping[int, Similarities]) -> Tensor:
        allowed = [
            self._candidates.allowed(terms, full, self._counts)
            for terms in self._settings.softmaxes
        ]

        def loss(prefix: Similarities) -> Tensor:
            return contrastive_loss(prefix, allowed, self._settings)

        return matryoshka_mean(loss, prefixes, self._weights)

    def _own_terms(
        self, full: Similarities, prefixes: Mapping[int, Similarities]
    ) -> dict[str, Tensor]:
        if not self._own.names:
            return {}
        own = self._candidates.own_negatives(full)
        self._labelled_rows += self._own.labelled_rows(own, full.rows)
        return {
            name: matryoshka_mean(
                lambda prefix, name=name: self._own.of(name, prefix, own), prefixes, self._weights
            )
            for name in self._own.names
        }

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
