"""Properties of the losses that hold for every batch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.losses.contrastive import ContrastiveSettings, Similarities, contrastive_loss
from model.losses.cosent import cosent
from model.losses.divergence import divergence
from model.losses.masks import BatchTexts, MaskCounts, TextMask, text_hashes
from model.losses.terms import Term

Row = tuple[str, str, list[str]]
"""Query, positive, hard negatives. A small alphabet makes equal texts frequent."""

TEXT = st.sampled_from("abcdefgh")
ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(TEXT, TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=6
)
VECTORS = nn.functional.normalize(
    torch.randn(8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
).float()


def batch_of(rows: list[Row]) -> tuple[BatchTexts, list[str]]:
    documents = [positive for _, positive, _ in rows]
    owners = list(range(len(rows)))
    for number, (_, _, negatives) in enumerate(rows):
        documents += negatives
        owners += [number] * len(negatives)
    query_B = text_hashes(query for query, _, _ in rows)
    return (
        BatchTexts(
            queries=query_B,
            documents=text_hashes(documents),
            owners=np.array(owners),
            known_queries=query_B,
            known_positives=text_hashes(positive for _, positive, _ in rows),
        ),
        documents,
    )


def embed(texts: list[str]) -> Tensor:
    return VECTORS[["abcdefgh".index(text) for text in texts]]


OWN: tuple[Term, ...] = ("own_negatives",)
EVERY: tuple[Term, ...] = ("own_negatives", "other_positives", "other_negatives")


def allowed_of(rows: list[Row], *, in_batch: bool) -> tuple[dict[Term, np.ndarray], MaskCounts]:
    counts = MaskCounts()
    mask = TextMask(batch_of(rows)[0])
    return mask.allowed(EVERY if in_batch else OWN, slice(0, len(rows)), counts), counts


def loss_of(rows: list[Row], *, in_batch: bool) -> float:
    _, documents = batch_of(rows)
    allowed, _ = allowed_of(rows, in_batch=in_batch)
    query, document = embed([query for query, _, _ in rows]), embed(documents)
    positive, negative = document.tensor_split([len(rows)])
    similarities = Similarities(query, positive, negative, slice(0, len(rows)))
    masks = {term: torch.from_numpy(mask) for term, mask in allowed.items()}
    settings = ContrastiveSettings((tuple(masks),), temperature=0.05)
    return contrastive_loss(similarities, [masks], settings).item() / len(rows)


@given(rows=ROWS, in_batch=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_the_loss_does_not_depend_on_the_order_of_rows(
    rows: list[Row], in_batch: bool, seed: int
) -> None:
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    np.testing.assert_allclose(
        loss_of(shuffled, in_batch=in_batch), loss_of(rows, in_batch=in_batch), rtol=1e-5, atol=1e-5
    )


@given(rows=ROWS, in_batch=st.booleans())
def test_no_negative_reads_like_the_query_or_its_positives(rows: list[Row], in_batch: bool) -> None:
    _, documents = batch_of(rows)
    allowed, _ = allowed_of(rows, in_batch=in_batch)
    names = {
        "own_negatives": documents[len(rows) :],
        "other_positives": documents[: len(rows)],
        "other_negatives": documents[len(rows) :],
    }
    for i, (query, _, _) in enumerate(rows):
        relevant = {positive for other, positive, _ in rows if other == query} | {query}
        negatives = [
            names[term][j] for term, mask in allowed.items() for j in np.flatnonzero(mask[i])
        ]
        assert not relevant & set(negatives)
        assert len(negatives) == len(set(negatives))


@given(rows=ROWS, in_batch=st.booleans(), data=st.data())
def test_repeating_a_hard_negative_changes_nothing(
    rows: list[Row], in_batch: bool, data: st.DataObject
) -> None:
    owner = data.draw(st.integers(0, len(rows) - 1))
    query, positive, negatives = rows[owner]
    text = data.draw(st.sampled_from([positive, query, *negatives]))
    known = {p for _, p, _ in rows} | {n for _, _, own in rows for n in own}
    if in_batch and text not in known:
        return  # a text that is new to the batch is a new negative of the other queries
    more = [*rows]
    more[owner] = (query, positive, [*negatives, text])
    np.testing.assert_allclose(
        loss_of(more, in_batch=in_batch), loss_of(rows, in_batch=in_batch), rtol=1e-6, atol=1e-6
    )


@given(rows=ROWS)
def test_every_candidate_is_counted_once(rows: list[Row]) -> None:
    _, documents = batch_of(rows)
    for in_batch in (False, True):
        allowed, counts = allowed_of(rows, in_batch=in_batch)
        own = sum(len(negatives) for _, _, negatives in rows)
        candidates = len(rows) * (len(documents) - 1) if in_batch else own
        kept = sum(counts.allowed.values())
        assert kept + sum(counts.masked.values()) == candidates
        assert kept == sum(int(mask.sum()) for mask in allowed.values())


@given(rows=ROWS, in_batch=st.booleans())
def test_the_loss_is_never_negative(rows: list[Row], in_batch: bool) -> None:
    assert loss_of(rows, in_batch=in_batch) >= -1e-5


@settings(deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=7),
    seed=st.integers(0, 2**32 - 1),
)
def test_cosent_depends_on_the_order_of_the_grades_only(scores: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    query_BD, document_BD = VECTORS[: len(scores)], VECTORS[rng.permutation(8)[: len(scores)]]
    score_B = torch.tensor(scores)
    got = cosent(query_BD, document_BD, score_B, 0.05)
    shuffle = torch.from_numpy(rng.permutation(len(scores)))
    torch.testing.assert_close(
        cosent(query_BD[shuffle], document_BD[shuffle], score_B[shuffle], 0.05), got
    )
    torch.testing.assert_close(cosent(query_BD, document_BD, score_B**3 + 1, 0.05), got)


@settings(deadline=None)
@given(
    counts=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_divergence_is_never_negative_and_does_not_depend_on_the_order_of_candidates(
    counts: list[list[bool]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(rng.normal(size=(len(counts), 5))) for _ in range(2))
    counts_RK = torch.tensor([[True, *row] for row in counts])
    got = divergence(student, teacher, counts_RK)
    assert got.item() >= -1e-9
    order = torch.from_numpy(rng.permutation(5))
    shuffled = divergence(student[:, order], teacher[:, order], counts_RK[:, order])
    torch.testing.assert_close(shuffled, got)
