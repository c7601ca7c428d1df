"""The published losses against their equations in plain float64, and sentence-transformers."""

from collections.abc import Callable
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from model.losses.contrastive import ContrastiveSettings, Similarities, contrastive_loss
from model.losses.false_negatives import FalseNegativeSettings, likely_negatives
from model.losses.masks import BatchTexts, MaskCounts, TextMask
from model.losses.presets import PRESETS
from model.losses.terms import Term

TAU = 0.05
Vectors = list[np.ndarray]
Equation = Callable[[int, Vectors, Vectors, list[Vectors], Callable[..., float]], float]


def unit_vectors(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, size, generator=generator), dim=-1)


def distinct_texts(rows: int, owners: list[int]) -> BatchTexts:
    query_B = np.arange(rows)
    document_N = 1000 + np.arange(len(owners))
    return BatchTexts(query_B, document_N, np.array(owners), query_B, document_N[:rows])


def similarities_of(query: Tensor, document: Tensor, rows: slice) -> Similarities:
    """Of a batch whose documents begin with the positives."""
    return Similarities(query, document[: len(query)], document[len(query) :], rows)


def loss_of(
    name: str, query: Tensor, document: Tensor, owners: list[int], slices: int = 1
) -> tuple[float, MaskCounts]:
    """Mean loss of a preset, the batch cut into slices of rows."""
    preset, rows = PRESETS[name], len(query)
    settings = ContrastiveSettings(preset.loss.softmaxes, TAU)
    mask, counts = TextMask(distinct_texts(rows, owners)), MaskCounts()
    total = 0.0
    for part in np.array_split(np.arange(rows), slices):
        wanted = slice(int(part[0]), int(part[-1]) + 1)
        similarities = similarities_of(query, document, wanted)
        allowed = []
        for terms in settings.softmaxes:
            found = mask.allowed(terms, wanted, counts)
            masks = {term: torch.from_numpy(found[term]) for term in terms}
            if preset.student_margin is not None:
                kept = likely_negatives(similarities, terms, preset.student_margin)
                masks = {term: masks[term] & kept[term] for term in terms}
            allowed.append(masks)
        total += contrastive_loss(similarities, allowed, settings).item()
    return total / rows, counts


# ---- the equations: i is the row, q, p and n[k] its queries, positives and hard negatives


def giga(i: int, q: Vectors, p: Vectors, n: list[Vectors], s: Callable[..., float]) -> float:
    """arXiv:2510.22369: the positive against in-batch documents and hard negatives."""
    positive = exp(s(q[i], p[i]))
    others = sum(exp(s(q[i], p[j])) for j in range(len(q)) if j != i)
    others += sum(exp(s(q[i], v)) for negatives in n for v in negatives)
    return -log(positive / (positive + others))


def gemini(i: int, q: Vectors, p: Vectors, n: list[Vectors], s: Callable[..., float]) -> float:
    """arXiv:2503.07891, eq. 2: own hard negatives, and the positives of all rows."""
    own = sum(exp(s(q[i], v)) for v in n[i])
    batch = sum(exp(s(q[i], p[j])) for j in range(len(q)))
    return -log(exp(s(q[i], p[i])) / (own + batch))


def qwen3(i: int, q: Vectors, p: Vectors, n: list[Vectors], s: Callable[..., float]) -> float:
    """arXiv:2506.05176, eq. 1-2 with m = 0 above the positive by 0.1; no bound on d-d."""
    positive, rest = s(q[i], p[i]), 0.0
    bound = positive + 0.1 / TAU
    others = [j for j in range(len(q)) if j != i]
    for score in [
        *(s(q[i], v) for v in n[i]),
        *(s(q[i], q[j]) for j in others),
        *(s(q[i], p[j]) for j in others),
    ]:
        rest += exp(score) if score <= bound else 0.0
    rest += sum(exp(s(p[i], p[j])) for j in others)
    return -log(exp(positive) / (exp(positive) + rest))


def hard_only(i: int, q: Vectors, p: Vectors, n: list[Vectors], s: Callable[..., float]) -> float:
    """arXiv:2405.17428, stage 2: in-batch negatives off."""
    positive = exp(s(q[i], p[i]))
    return -log(positive / (positive + sum(exp(s(q[i], v)) for v in n[i])))


def gecko(i: int, q: Vectors, p: Vectors, n: list[Vectors], s: Callable[..., float]) -> float:
    """arXiv:2403.20327: own hard negative, all positives, the other queries."""
    below = sum(exp(s(q[i], p[j])) for j in range(len(q)))
    below += sum(exp(s(q[i], q[j])) for j in range(len(q)) if j != i)
    below += sum(exp(s(q[i], v)) for v in n[i])
    return -log(exp(s(q[i], p[i])) / below)


def f2llm(i: int, q: Vectors, p: Vectors, n: list[Vectors], s: Callable[..., float]) -> float:
    """Two cross-entropies, over own hard negatives and over the positives of the batch."""
    positive = exp(s(q[i], p[i]))
    batch = sum(exp(s(q[i], p[j])) for j in range(len(q)))
    return hard_only(i, q, p, n, s) - log(positive / batch)


EQUATIONS: dict[str, Equation] = {
    "giga": giga,
    "nv-embed-1": giga,
    "gemini": gemini,
    "qwen3": qwen3,
    "nv-embed-2": hard_only,
    "gecko": gecko,
    "f2llm": f2llm,
}


def test_every_preset_has_its_equation() -> None:
    assert EQUATIONS.keys() == PRESETS.keys()


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("counts", [[0] * 5, [1] * 5, [3, 0, 1, 7, 2]], ids=["0", "1", "ragged"])
@pytest.mark.parametrize("name", EQUATIONS)
def test_value_is_the_equation_in_float64(name: str, counts: list[int], slices: int) -> None:
    rows = len(counts)
    owners = [*range(rows), *np.repeat(np.arange(rows), counts).tolist()]
    query, document = unit_vectors(rows, 8, 0), unit_vectors(len(owners), 8, 1)
    # near copies, so that the margin of qwen3 has something to drop
    document[1] = nn.functional.normalize(query[0] + 0.1 * document[1], dim=-1)
    q = list(query.double().numpy())
    d = list(document.double().numpy())
    negatives = [[d[k] for k in range(rows, len(d)) if owners[k] == i] for i in range(rows)]

    def score(first: np.ndarray, second: np.ndarray) -> float:
        return float(first @ second) / TAU

    equation = EQUATIONS[name]
    expected = [equation(i, q, d[:rows], negatives, score) for i in range(rows)]
    got, _ = loss_of(name, query, document, owners, slices)
    assert got == pytest.approx(np.mean(expected), rel=1e-5, abs=1e-6)


JOINT: dict[Term, str] = {"queries": "query_to_query", "documents": "doc_to_doc"}


@pytest.mark.parametrize("hard_negatives", [0, 1, 3])
def test_in_batch_loss_is_the_one_of_sentence_transformers(hard_negatives: int) -> None:
    query, document = unit_vectors(6, 16, 3), unit_vectors(6 * (1 + hard_negatives), 16, 4)
    reference = MultipleNegativesRankingLoss(nn.Module(), scale=1 / TAU)  # pyright: ignore[reportArgumentType]  # embeddings are given, the model is not called
    expected = reference.compute_loss_from_embeddings(
        [query, *document.chunk(1 + hard_negatives)], torch.empty(0)
    )
    owners = list(range(6)) * (1 + hard_negatives)
    got, _ = loss_of("giga", query, document, owners)
    assert got == pytest.approx(expected.item(), rel=1e-5)


def with_direction(direction: str, partition: Any, query: Tensor, document: Tensor) -> float:
    """sentence-transformers with query-to-document and one more direction."""
    directions: Any = ("query_to_doc", direction)
    model: Any = nn.Module()  # embeddings are given, the model is not called
    reference = MultipleNegativesRankingLoss(
        model, scale=1 / TAU, directions=directions, partition_mode=partition
    )
    return reference.compute_loss_from_embeddings([query, document], torch.empty(0)).item()


@pytest.mark.parametrize("term", JOINT)
def test_same_tower_terms_are_those_of_sentence_transformers(term: Term) -> None:
    query, document = unit_vectors(6, 16, 5), unit_vectors(6, 16, 6)
    other = ~torch.eye(6, dtype=torch.bool)
    settings = ContrastiveSettings((("other_positives", term),), TAU)
    similarities = similarities_of(query, document, slice(0, 6))
    got = contrastive_loss(similarities, [{"other_positives": other, term: other}], settings) / 6
    expected = with_direction(JOINT[term], "joint", query, document)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_two_softmaxes_add_up_to_twice_the_mean_of_sentence_transformers() -> None:
    query, document = unit_vectors(6, 16, 5), unit_vectors(6, 16, 6)
    other = ~torch.eye(6, dtype=torch.bool)
    settings = ContrastiveSettings((("other_positives",), ("document_queries",)), TAU)
    allowed: list[dict[Term, Tensor]] = [{"other_positives": other}, {"document_queries": other}]
    similarities = similarities_of(query, document, slice(0, 6))
    got = contrastive_loss(similarities, allowed, settings) / 6
    expected = with_direction("doc_to_query", "per_direction", query, document)
    assert got.item() == pytest.approx(2 * expected, rel=1e-5)


def test_hardness_adds_the_plain_cosine_without_gradient() -> None:
    query, document = unit_vectors(2, 8, 7).requires_grad_(), unit_vectors(4, 8, 8)
    allowed: dict[Term, Tensor] = {"own_negatives": torch.eye(2, dtype=torch.bool)}
    similarities = similarities_of(query, document, slice(0, 2))
    settings = ContrastiveSettings((("own_negatives",),), TAU, hardness={"own_negatives": 5.0})
    loss = contrastive_loss(similarities, [allowed], settings)
    with torch.no_grad():
        cosine = (query @ document[2:].T).diagonal().double()
        positive = (query * document[:2]).sum(-1).double() / TAU
        weight = torch.exp(5 * cosine)
        expected = torch.log(1 + weight * torch.exp(cosine / TAU - positive)).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    loss.backward()
    share = torch.sigmoid(cosine / TAU + 5 * cosine - positive)
    gradient = (share[:, None] * (document[2:] - document[:2]).double() / TAU).float()
    torch.testing.assert_close(query.grad, gradient, rtol=1e-4, atol=1e-5)


def test_a_row_without_candidates_adds_nothing() -> None:
    query, document = unit_vectors(2, 8, 5).requires_grad_(), unit_vectors(2, 8, 6)
    similarities = similarities_of(query, document, slice(0, 2))
    nothing: dict[Term, Tensor] = {"other_positives": torch.zeros(2, 2, dtype=torch.bool)}
    loss = contrastive_loss(
        similarities, [nothing], ContrastiveSettings((("other_positives",),), TAU)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert query.grad is not None
    assert query.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    """A bfloat16 product over a temperature of 0.01 would be off by tenths of a nat."""
    query, document = unit_vectors(8, 64, 9).bfloat16(), unit_vectors(8, 64, 10).bfloat16()
    other: dict[Term, Tensor] = {"other_positives": ~torch.eye(8, dtype=torch.bool)}
    settings = ContrastiveSettings((("other_positives",),), temperature=0.01)
    got, expected = (
        contrastive_loss(similarities_of(q, d, slice(0, 8)), [other], settings)
        for q, d in ((query, document), (query.float(), document.float()))
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


# ---- masks by score


def near_and_far() -> Similarities:
    """One query with positive at cosine 0.5; others at 0.55, 0.65 and -0.5."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    cosine = torch.tensor([0.5, 0.55, 0.65, -0.5])
    document = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)
    return similarities_of(query, document, slice(0, 1))


@pytest.mark.parametrize(
    ("margin", "kind", "expected"),
    [
        (0.1, "absolute", [1, 1, 0, 1]),
        (0.0, "absolute", [1, 0, 0, 1]),
        (0.2, "relative", [1, 1, 0, 1]),
        (-0.05, "relative", [0, 0, 0, 1]),
        (0.4, "relative", [1, 1, 1, 1]),
    ],
)
def test_a_candidate_above_the_bound_is_left_out(
    margin: float, kind: Any, expected: list[int]
) -> None:
    settings = FalseNegativeSettings(margin=margin, kind=kind)
    kept = likely_negatives(near_and_far(), ["other_positives"], settings)
    assert kept["other_positives"].int().tolist() == [expected]


def test_a_relative_bound_below_a_negative_score_lies_below_it() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    document = torch.tensor([[-0.5, 0.75**0.5], [-0.51, 0.86]])
    settings = FalseNegativeSettings(margin=-0.05, kind="relative")
    similarities = similarities_of(query, document, slice(0, 1))
    kept = likely_negatives(similarities, ["other_positives"], settings)["other_positives"]
    assert not kept[0, 1], "-0.51 is above the bound -0.525"


def test_explicit_negatives_are_judged_only_when_asked() -> None:
    query = torch.tensor([[1.0, 0.0]])
    document = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    similarities = similarities_of(query, document, slice(0, 1))
    for explicit in (False, True):
        settings = FalseNegativeSettings(margin=0.0, explicit=explicit)
        kept = likely_negatives(similarities, ["own_negatives"], settings)["own_negatives"]
        assert bool(kept[0, 0]) is not explicit


def test_pairs_of_documents_are_never_judged_by_default() -> None:
    document = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    similarities = similarities_of(torch.eye(2), document, slice(0, 2))
    settings = FalseNegativeSettings(margin=0.0)
    assert likely_negatives(similarities, ["documents"], settings)["documents"].all()
