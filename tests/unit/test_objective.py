"""What may be added to a loss, composed on batches of random vectors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.encoder.tokenization import TokenizedText
from model.losses.contrastive import Similarities, contrastive_loss
from model.losses.false_negatives import FalseNegativeSettings
from model.losses.masks import BatchTexts, MaskCounts, TextMask
from model.losses.presets import PRESETS
from model.losses.spread_out import spread_out
from model.training.data.batches import Batch, PlainText
from model.training.devices.team import Team
from model.training.objective.frozen import FrozenVectors
from model.training.objective.loss_options import (
    DivergenceSettings,
    LossOptions,
    MatchingSettings,
    TripletSettings,
)
from model.training.objective.loss_report import LossReport
from model.training.objective.objective import objective_of
from model.training.settings import LossSettings

ROWS, TAU = 6, 0.05
COUNTS = [2, 0, 1, 3, 2, 1]
"""Hard negatives of each row."""
CPU = torch.device("cpu")


def unit(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, size, generator=generator), dim=-1)


def batch_of(counts: list[int] = COUNTS, **fields: Any) -> Batch:
    """Distinct texts: the query of row i is i, document j is 1000 + j."""
    query_B, document_N = np.arange(ROWS), 1000 + np.arange(ROWS + sum(counts))
    owners = np.concatenate([np.arange(ROWS), np.repeat(np.arange(ROWS), counts)])
    texts = BatchTexts(query_B, document_N, owners, query_B, document_N[:ROWS])
    batch = Batch(
        row_ids=[str(row) for row in range(ROWS)],
        items=[TokenizedText([1], 0)] * (ROWS + len(document_N)),
        texts=texts,
        scores=None,
        is_in_batch=True,
        teacher_scores=np.full(len(document_N), np.nan, dtype=np.float32),
        plain_texts=[PlainText("", "", is_query=False)] * (ROWS + len(document_N)),
    )
    return replace(batch, **fields)


def texts_of(batch: Batch) -> int:
    return len(batch.items)


def loss_of(
    batch: Batch,
    student: Tensor,
    options: LossOptions = LossOptions(),  # noqa: B008 - frozen
    name: str = "giga",
    **others: Any,
) -> tuple[float, LossReport]:
    settings = LossSettings(name, TAU, options=options)
    arguments = {"is_in_batch": True, "sizes": [student.shape[1]]} | others
    made = objective_of(batch, loss=settings, device=CPU, **arguments)
    loss, _ = made.loss_and_gradient(student, Team())
    return loss.item(), made.report(Team())


# ---- nothing added


@pytest.mark.parametrize("name", PRESETS)
def test_without_options_value_and_gradient_are_the_bare_formula_to_the_bit(name: str) -> None:
    """The formula as it was before there were options."""
    batch, sizes = batch_of(), [16, 8]
    student = unit(texts_of(batch), 16, 0)
    preset = PRESETS[name]
    hardness: dict[Any, float] = {"own_negatives": 5.0}
    loss = LossSettings(name, TAU, hardness=hardness, spread_out=0.5, use_student_margin=False)
    made = objective_of(batch, is_in_batch=True, loss=loss, sizes=sizes, device=CPU)
    value, gradient = made.loss_and_gradient(student, Team())
    plain = student.clone().requires_grad_()
    query, document = plain[:ROWS], plain[ROWS:]
    mask, rows = TextMask(batch.texts), slice(0, ROWS)
    allowed = [
        {term: torch.from_numpy(m) for term, m in mask.allowed(terms, rows, MaskCounts()).items()}
        for terms in preset.loss.softmaxes
    ]
    settings = replace(preset.loss, temperature=TAU, hardness=hardness)
    values = []
    for size in sizes:
        prefix = F.normalize(plain[:, :size], dim=-1)
        similarities = Similarities(*prefix.tensor_split([ROWS, 2 * ROWS]), rows)
        values.append(contrastive_loss(similarities, allowed, settings))
    expected = torch.stack(values).mean()
    expected = expected + 0.5 * spread_out(query, document[:ROWS], rows)
    (expected / ROWS).backward()
    assert torch.equal(value, expected / ROWS)
    assert plain.grad is not None
    assert torch.equal(gradient, plain.grad)


# ---- masks by score


class LookUp(nn.Module):
    """Stands where the reference expects a model: gives the embeddings it is handed."""

    max_seq_length = 8

    def __init__(self, tokenizer: PreTrainedTokenizerFast, key: str) -> None:
        super().__init__()
        self.tokenizer, self.key = tokenizer, key

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": features[self.key]}


@pytest.mark.parametrize(
    ("kind", "margin"),
    [("absolute", 0.0), ("absolute", 0.1), ("relative", 0.05), ("relative", 0.3)],
)
@pytest.mark.parametrize("negatives", [0, 1])
def test_a_guide_masks_as_in_sentence_transformers(
    kind: Any, margin: float, negatives: int, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    batch = batch_of([negatives] * ROWS)
    student, guide = unit(texts_of(batch), 8, 1), unit(texts_of(batch), 5, 2)
    models: list[Any] = [LookUp(pico_tokenizer, key) for key in ("student", "guide")]
    reference = GISTEmbedLoss(*models, temperature=TAU, margin_strategy=kind, margin=margin)
    columns = range(0, texts_of(batch), ROWS)
    features = [
        {"student": student[start : start + ROWS], "guide": guide[start : start + ROWS]}
        for start in columns
    ]
    expected = reference(features, torch.empty(0)).item()
    mask = FalseNegativeSettings(-margin, kind, in_batch=True, explicit=True, except_terms=())
    options = LossOptions(
        softmaxes=[["own_negatives", "other_positives", "other_negatives", "queries", "documents"]],
        guide=mask,
    )
    got, made = loss_of(batch, student, options, frozen=FrozenVectors(guide_MD=guide))
    assert 0 < made.masked_by_guide < 1
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_guide_judges_in_batch_and_own_negatives_apart() -> None:
    """Against a loop in float64 over the candidates of each row."""
    batch = batch_of()
    student, guide = unit(texts_of(batch), 8, 3), unit(texts_of(batch), 5, 4)
    q, d = student.double()[:ROWS], student.double()[ROWS:]
    guide_q, guide_d = guide.double()[:ROWS], guide.double()[ROWS:]
    for in_batch in (False, True):
        for explicit in (False, True):
            losses, dropped = [], 0
            for i in range(ROWS):
                bound, others = guide_q[i] @ guide_d[i], []
                for j, owner in enumerate(batch.texts.owners):
                    is_judged = explicit if owner == i else in_batch
                    if j == i:
                        continue
                    if is_judged and guide_q[i] @ guide_d[j] > bound:
                        dropped += 1
                    else:
                        others.append(q[i] @ d[j] / TAU)
                every = torch.stack([q[i] @ d[i] / TAU, *others])
                losses.append(every.logsumexp(0) - every[0])
            mask = FalseNegativeSettings(0.0, in_batch=in_batch, explicit=explicit)
            vectors = FrozenVectors(guide_MD=guide)
            got, made = loss_of(batch, student, LossOptions(guide=mask), frozen=vectors)
            assert got == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
            assert made.masked_by_guide == pytest.approx(dropped / (ROWS * (len(d) - 1)))
            assert made.masked_by_score == 0.0


def test_a_student_margin_takes_the_place_of_the_presets() -> None:
    batch = batch_of()
    student = unit(texts_of(batch), 8, 5)
    nothing = FalseNegativeSettings(0.0, in_batch=False, explicit=False)
    loose = FalseNegativeSettings(0.1, explicit=True)
    shares = [
        loss_of(batch, student, LossOptions(student_margin=margin), "qwen3")[1].masked_by_score
        for margin in (None, loose, nothing)
    ]
    assert shares[0] == shares[1] > shares[2] == 0.0
    _, made = loss_of(batch, student, LossOptions(student_margin=loose), "giga")
    assert made.masked_by_score > 0


def test_a_guide_without_vectors_is_an_error() -> None:
    batch = batch_of()
    with pytest.raises(ValueError, match="masked by a guide, but there is none"):
        loss_of(batch, unit(texts_of(batch), 8, 5), LossOptions(guide=FalseNegativeSettings(0.0)))


# ---- softmaxes and classes


def test_softmaxes_in_place_of_the_presets_are_the_preset_that_has_them() -> None:
    batch = batch_of()
    student = unit(texts_of(batch), 8, 6)
    options = LossOptions(softmaxes=[["own_negatives"], ["other_positives"]])
    assert loss_of(batch, student, options, "giga")[0] == loss_of(batch, student, name="f2llm")[0]


def test_a_batch_of_own_negatives_alone_keeps_them_whatever_the_softmaxes() -> None:
    batch = batch_of()
    student = unit(texts_of(batch), 8, 6)
    options = LossOptions(softmaxes=[["other_positives", "queries"]])
    got, made = loss_of(batch, student, options, is_in_batch=False)
    assert got == loss_of(batch, student, name="nv-embed-2")[0]
    assert made.in_batch_negatives == 0.0


def test_classes_mask_every_document_that_may_be_of_the_rows_class() -> None:
    """Positives of the same class; hard negatives of rows of another class, which may be any."""
    batch = batch_of()
    class_B = np.array([7, 7, 8, 8, 9, 7])
    batch = replace(batch, texts=replace(batch.texts, classes=class_B))
    student = unit(texts_of(batch), 8, 7)
    q, d = student.double()[:ROWS], student.double()[ROWS:]
    losses = []
    for i in range(ROWS):
        kept = [
            q[i] @ d[j] / TAU
            for j, owner in enumerate(batch.texts.owners)
            if j != i and (owner == i or (class_B[owner] != class_B[i]) == (j < ROWS))
        ]
        every = torch.stack([q[i] @ d[i] / TAU, *kept])
        losses.append(every.logsumexp(0) - every[0])
    got, _ = loss_of(batch, student)
    assert got == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


# ---- added terms


def with_scores(batch: Batch, seed: int = 8) -> Batch:
    """Every document has a score but the positive of row 3 and a hard negative of row 4."""
    scores = np.random.default_rng(seed).random(len(batch.texts.owners)).astype(np.float32)
    unknown = [3, ROWS + int(np.flatnonzero(batch.texts.owners[ROWS:] == 4)[0])]
    scores[unknown] = np.nan
    return replace(batch, teacher_scores=scores)


def test_soft_labels_pass_over_rows_without_scores_and_count_the_others() -> None:
    batch = with_scores(batch_of())
    student = unit(texts_of(batch), 8, 9)
    q, d = student.double()[:ROWS], student.double()[ROWS:]
    expected = 0.0
    for i in (0, 2, 5):
        places = [i, *(ROWS + np.flatnonzero(batch.texts.owners[ROWS:] == i))]
        own = torch.stack([q[i] @ d[place] for place in places]) / TAU
        teacher = torch.from_numpy(batch.teacher_scores[places]).double() / 0.1
        expected += F.kl_div(own.log_softmax(0), teacher.softmax(0), reduction="sum").item()
    got, made = loss_of(batch, student, LossOptions(soft_labels=DivergenceSettings(0.7, 0.1)))
    assert made.soft_label_rows == 3, "row 1 has no negatives, 3 and 4 lack a score"
    assert made.losses["soft_labels"] == pytest.approx(0.7 * expected / ROWS, rel=1e-5)
    assert got == pytest.approx(sum(made.losses.values()), rel=1e-6)
    assert made.losses["contrastive"] == pytest.approx(loss_of(batch, student)[0], rel=1e-6)


def test_triplets_leave_out_what_the_guide_takes_for_a_positive() -> None:
    batch = batch_of()
    student, guide = unit(texts_of(batch), 8, 10), unit(texts_of(batch), 5, 11)
    q, d, guide_q, guide_d = (
        part.double() for both in (student, guide) for part in (both[:ROWS], both[ROWS:])
    )
    for explicit in (False, True):
        expected = 0.0
        for i in range(ROWS):
            hinges = [
                max(0.0, float(q[i] @ d[j] - q[i] @ d[i]) + 0.2)
                for j in ROWS + np.flatnonzero(batch.texts.owners[ROWS:] == i)
                if not explicit or guide_q[i] @ guide_d[j] <= guide_q[i] @ guide_d[i]
            ]
            expected += float(np.mean(hinges)) if hinges else 0.0
        options = LossOptions(
            triplet=TripletSettings(3.0, 0.2), guide=FalseNegativeSettings(0.0, explicit=explicit)
        )
        _, made = loss_of(batch, student, options, frozen=FrozenVectors(guide_MD=guide))
        assert made.losses["triplet"] == pytest.approx(3.0 * expected / ROWS, rel=1e-5)


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "size"),
    [(16, 16, None), (16, 8, 8), (16, 40, 16), (16, 40, 8)],
)
def test_vectors_are_matched_on_queries_positives_and_hard_negatives(
    student_size: int, teacher_size: int, size: int | None
) -> None:
    batch = batch_of()
    count, cut = texts_of(batch), size or student_size
    student, teacher = unit(count, student_size, 12), unit(count, teacher_size, 13)
    exact = [F.normalize(each.double()[:, :cut], dim=-1) for each in (student, teacher)]
    distance = (exact[0] - exact[1]).square().sum(1)
    means = [distance[:ROWS].mean(), distance[ROWS : 2 * ROWS].mean(), distance[2 * ROWS :].mean()]
    options = LossOptions(embeddings=MatchingSettings(2.0, size))
    vectors = FrozenVectors(teacher_MD=teacher)
    _, made = loss_of(batch, student, options, frozen=vectors, sizes=[16, 8])
    assert made.losses["embeddings"] == pytest.approx(2 * sum(means).item(), rel=1e-5)


def test_similarities_are_matched_to_a_teacher_of_any_size_each_text_once() -> None:
    batch = batch_of()
    # the last document reads like the positive of row 2
    documents = batch.texts.documents.copy()
    documents[-1] = documents[2]
    batch = replace(batch, texts=replace(batch.texts, documents=documents))
    count = texts_of(batch)
    student, teacher = unit(count, 8, 14), unit(count, 5, 15)
    logits = [
        each.double()[:ROWS] @ each.double()[ROWS:-1].T / tau
        for each, tau in ((student, TAU), (teacher, 0.1))
    ]
    expected = F.kl_div(
        logits[0].log_softmax(1), logits[1].softmax(1), reduction="batchmean"
    ).item()
    options = LossOptions(similarities=DivergenceSettings(0.7, 0.1))
    _, made = loss_of(batch, student, options, frozen=FrozenVectors(teacher_MD=teacher))
    assert made.losses["similarities"] == pytest.approx(0.7 * expected, rel=1e-5)


def test_graded_pairs_are_matched_to_the_teacher_as_well() -> None:
    batch = batch_of([0] * ROWS)
    graded = replace(batch, scores=np.arange(ROWS, dtype=np.float32) / ROWS)
    student, teacher = unit(2 * ROWS, 8, 16), unit(2 * ROWS, 5, 17)
    options = LossOptions(similarities=DivergenceSettings(0.7, 0.1))
    vectors = FrozenVectors(teacher_MD=teacher)
    got, made = loss_of(graded, student, options, frozen=vectors)
    assert made.losses["cosent"] == pytest.approx(loss_of(graded, student)[0], rel=1e-6)
    _, plain = loss_of(batch, student, options, frozen=vectors)
    assert made.losses["similarities"] == pytest.approx(plain.losses["similarities"], rel=1e-6)
    assert got == pytest.approx(sum(made.losses.values()), rel=1e-6)


def test_a_teacher_of_another_size_is_refused_where_vectors_are_matched() -> None:
    batch = batch_of()
    options = LossOptions(embeddings=MatchingSettings(1.0, None))
    with pytest.raises(ValueError, match="size 8, but have 5 numbers"):
        loss_of(
            batch, unit(texts_of(batch), 8, 18), options,
            frozen=FrozenVectors(teacher_MD=unit(texts_of(batch), 5, 19)),
        )  # fmt: skip
    with pytest.raises(ValueError, match="need a teacher"):
        loss_of(batch, unit(texts_of(batch), 8, 18), options)
