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
from model.losses.cosent import cosent
from model.losses.false_negatives import likely_negatives
from model.losses.masks import MASK_REASONS, MaskCounts, TextMask
from model.losses.matryoshka import matryoshka_mean
from model.losses.pearson import pearson
from model.losses.presets import PRESETS, Preset
from model.losses.spread_out import spread_out
from model.losses.terms import EXPLICIT_TERMS, Term
from model.training.batches import Batch
from model.training.settings import LossSettings
from model.training.team import Team

NOT_IN_BATCH: tuple[Term, ...] = (*EXPLICIT_TERMS, "memory")
"""Terms whose negatives were chosen for the row or come from earlier batches."""
ROWS_AT_ONCE = 1024
"""Rows whose similarities exist at once: the loss of a large batch needs no large matrix."""


class GradedObjective:
    """A loss of graded pairs at every Matryoshka size, one value for the batch.

    Its rows are never parted, so one process scores them all.
    """

    masked_share = 0.0
    masked_by_score = 0.0
    in_batch_negatives = 0.0
    hard_negatives = 0.0
    memory_negatives = 0.0

    def __init__(
        self, batch: Batch, loss: LossSettings, *, sizes: list[int], device: torch.device
    ) -> None:
        assert batch.scores is not None  # noqa: S101 - the caller chose by it
        self._score_B = torch.from_numpy(batch.scores).to(device)
        self._loss = loss
        self._sizes = sizes

    def shares(self, embedding_MD: Tensor, team: Team) -> Iterator[Tensor]:
        """The loss of the (M, D) embeddings, in one piece, by the leading process."""
        if not team.leads:
            return
        num_rows = len(self._score_B)

        def graded(prefix_MD: Tensor) -> Tensor:
            pair = prefix_MD[:num_rows], prefix_MD[num_rows:]
            if self._loss.graded == "pearson":
                return pearson(*pair, self._score_B)
            return cosent(*pair, self._score_B, self._loss.temperature)

        yield matryoshka_mean(graded, embedding_MD, self._sizes)

    def add_up_counts(self, team: Team) -> None:
        """A graded loss counts nothing."""


class ContrastiveObjective:
    """A contrastive loss at every Matryoshka size, computed in slices of rows.

    Masks are made once per slice, from texts and from scores at full dimension, and serve all
    sizes. The counts are those of this process until `add_up_counts`.
    """

    def __init__(
        self,
        batch: Batch,
        preset: Preset,
        loss: LossSettings,
        *,
        sizes: list[int],
        use_student_margin: bool,
        device: torch.device,
    ) -> None:
        self._mask = TextMask(batch.texts)
        softmaxes = preset.loss.softmaxes
        self._settings = replace(
            preset.loss,
            softmaxes=softmaxes if batch.memory_QD is None else _with_memory(softmaxes),
            temperature=loss.temperature,
            hardness=loss.hardness,
        )
        self._memory_QD = batch.memory_QD
        self._spread_out = loss.spread_out
        self._margin = preset.student_margin if use_student_margin else None
        self._sizes = sizes
        self._device = device
        self._counts = MaskCounts()
        self._masked_by_score = 0

    def shares(self, embedding_MD: Tensor, team: Team) -> Iterator[Tensor]:
        """Shares of the loss of the (M, D) embeddings, one per slice of rows of this process.

        Over all processes they add up to the loss.
        """
        num_rows = self._mask.num_rows
        width = min(ROWS_AT_ONCE, -(-num_rows // team.size))
        starts = range(0, num_rows, width)
        for start in starts[team.rank :: team.size]:
            yield self._share(embedding_MD, slice(start, min(start + width, num_rows)))

    def add_up_counts(self, team: Team) -> None:
        """Make the counts those of the whole batch, when every process has used up its shares."""
        names: list[Term] = [term for terms in self._settings.softmaxes for term in terms]
        allowed = [self._counts.allowed.get(term, 0) for term in names]
        masked = [self._counts.masked.get(reason, 0) for reason in MASK_REASONS]
        numbers = torch.tensor([*allowed, *masked, self._masked_by_score], device=self._device)
        *totals, self._masked_by_score = team.add_up(numbers).tolist()
        self._counts = MaskCounts(
            dict(zip(names, totals, strict=False)),
            dict(zip(MASK_REASONS, totals[len(names) :], strict=True)),
        )

    def _share(self, embedding_MD: Tensor, rows: slice) -> Tensor:
        num_rows = self._mask.num_rows
        full = self._similarities(embedding_MD, rows)
        allowed = [self._allowed(terms, full) for terms in self._settings.softmaxes]

        def of_rows(prefix_MD: Tensor) -> Tensor:
            cut = self._similarities(prefix_MD, rows)
            return contrastive_loss(cut, allowed, self._settings)

        total = matryoshka_mean(of_rows, embedding_MD, self._sizes)
        if self._spread_out:
            positive_BD = full.document_ND[:num_rows]
            total = total + self._spread_out * spread_out(full.query_BD, positive_BD, rows)
        return total / num_rows

    def _similarities(self, prefix_MD: Tensor, rows: slice) -> Similarities:
        """Of the slice, with remembered documents cut to the size of the prefix."""
        memory_QD = self._memory_QD
        if memory_QD is not None:
            memory_QD = F.normalize(memory_QD[:, : prefix_MD.shape[1]], dim=-1)
        num_rows = self._mask.num_rows
        return Similarities(prefix_MD[:num_rows], prefix_MD[num_rows:], rows, memory_QD)

    def _allowed(self, terms: tuple[Term, ...], full: Similarities) -> dict[Term, Tensor]:
        allowed: dict[Term, Tensor] = {
            term: torch.from_numpy(mask).to(self._device)
            for term, mask in self._mask.allowed(terms, full.rows, self._counts).items()
        }
        if self._margin is None:
            return allowed
        kept = likely_negatives(full, terms, self._margin)
        both: dict[Term, Tensor] = {term: allowed[term] & kept[term] for term in terms}
        self._masked_by_score += sum(int((allowed[t] & ~kept[t]).sum()) for t in terms)
        return both

    @property
    def in_batch_negatives(self) -> float:
        """Candidates in the batch nobody chose for the row, allowed by texts, mean over rows."""
        every = sum(self._counts.allowed.values())
        return (every - self._count(*NOT_IN_BATCH)) / self._mask.num_rows

    @property
    def hard_negatives(self) -> float:
        """Own hard negatives allowed by the texts, mean over rows."""
        return self._count(*EXPLICIT_TERMS) / self._mask.num_rows

    @property
    def memory_negatives(self) -> float:
        """Documents of earlier batches allowed by the texts, mean over rows."""
        return self._count("memory") / self._mask.num_rows

    @property
    def masked_share(self) -> float:
        """Candidates dropped by the text mask over all candidates."""
        return self._counts.masked_share

    @property
    def masked_by_score(self) -> float:
        """Candidates dropped by the student's margin over those the texts allow."""
        return self._masked_by_score / max(1, sum(self._counts.allowed.values()))

    def _count(self, *terms: Term) -> int:
        return sum(self._counts.allowed.get(term, 0) for term in terms)


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
    use_student_margin: bool = True,
) -> Objective:
    """The graded loss for a batch with scores, the preset for any other.

    A task whose other rows are no safe negatives (`is_in_batch` false: classes and clusters) is
    set against its own hard negatives alone, whatever the preset.
    """
    if batch.scores is not None:
        return GradedObjective(batch, loss, sizes=sizes, device=device)
    return ContrastiveObjective(
        batch,
        PRESETS[loss.name if is_in_batch else "nv-embed-2"],
        loss,
        sizes=sizes,
        use_student_margin=use_student_margin,
        device=device,
    )
