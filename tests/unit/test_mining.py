"""Mining against numpy in float64, and the rules that keep false negatives out."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives as peer_mine_hard_negatives
from torch.nn.functional import normalize

from model import mining
from model.mining import mine_hard_negatives, pair_scores, positive_cap, top_k


def random_unit(count: int, size: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute_force(query, document, k):
    """The definition in numpy: float64 products rounded to float32, ties to the lower index."""
    product = query.numpy().astype(np.float64) @ document.numpy().astype(np.float64).T
    score = product.astype(np.float32)
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, order, axis=1), order


def test_top_k_equals_a_float64_argsort_over_all_documents():
    query, document = random_unit(57, 24, seed=1), random_unit(1009, 24, seed=2)
    score, index = top_k(query, document, 13, tile_bytes=5000)
    expected_score, expected_index = brute_force(query, document, 13)
    assert np.array_equal(index.numpy(), expected_index)
    assert np.array_equal(score.numpy(), expected_score)


def test_equal_documents_come_in_the_order_of_their_index():
    one = random_unit(1, 16, seed=3)
    document = torch.cat([random_unit(40, 16, seed=4), one.expand(300, -1)])
    score, index = top_k(one, document, 50, tile_bytes=2000)
    assert index[0].tolist() == list(range(40, 90))
    assert torch.allclose(score, torch.ones(1, 50))


def test_documents_that_float32_cannot_tell_apart_are_ranked_in_float64():
    """Cosines that differ by less than float32 rounding, more of them than the spare places."""
    query = normalize(torch.ones(3, 64), dim=1)
    noise = torch.randn(500, 64, generator=torch.Generator().manual_seed(5)) * 3e-5
    document = normalize(torch.ones(500, 64) + noise, dim=1)
    _, index = top_k(query, document, 20)
    assert np.array_equal(index.numpy(), brute_force(query, document, 20)[1])


def test_fewer_documents_than_k_are_all_returned():
    query, document = random_unit(2, 8, seed=6), random_unit(3, 8, seed=7)
    assert top_k(query, document, 10)[1].sort(dim=1).values.tolist() == [[0, 1, 2]] * 2


def test_similarities_held_at_a_time_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch):
    """Every product of the search is a tile: the query by document matrix never exists."""
    sizes = []
    plain = torch.mm

    def recorded(left, right, *, out):
        sizes.append(out.numel() * out.element_size())
        return plain(left, right, out=out)

    monkeypatch.setattr(mining.torch, "mm", recorded)
    top_k(random_unit(300, 8, seed=8), random_unit(2000, 8, seed=9), 5, tile_bytes=40_000)
    assert max(sizes) <= 40_000
    assert sum(sizes) == 300 * 2000 * 4


@pytest.mark.parametrize(
    ("query", "document", "k", "message"),
    [
        (torch.ones(1, 4), torch.ones(0, 4), 1, "each number must be at least 1"),
        (torch.ones(1, 4), torch.ones(2, 4), 0, "each number must be at least 1"),
        (torch.ones(1, 4), torch.ones(2, 5), 1, "encode both with one model"),
        (torch.ones(1, 4), torch.full((2, 4), torch.nan), 1, "NaN or infinity"),
    ],
)
def test_impossible_searches_are_refused(query, document, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(query, document, k)


def test_pair_scores_are_those_of_the_search():
    query, document = random_unit(9, 24, seed=1), random_unit(50, 24, seed=2)
    score, index = top_k(query, document, 4)
    rows = torch.arange(9).repeat_interleave(4)
    assert torch.equal(pair_scores(query, document, rows, index.flatten()), score.flatten())


def test_the_cap_is_a_share_of_a_positive_score():
    scores = torch.tensor([0.8, 0.2], dtype=torch.float64)
    assert torch.allclose(positive_cap(scores, 0.95), 0.95 * scores)


def test_the_cap_lies_below_a_score_that_is_not_positive():
    """0.95 * s would lie above s here and let documents nearer than the positive through."""
    assert positive_cap(torch.tensor([-0.5]), 0.9).tolist() == pytest.approx([-0.55])
    assert positive_cap(torch.tensor([0.0]), 0.9).tolist() == [0.0]


def mined(score, *, positive, forbidden=(), wanted=10, share=0.95):
    found = mine_hard_negatives(
        (torch.tensor([score]), torch.arange(len(score))[None]),
        torch.tensor([positive]),
        torch.tensor([(0, number) for number in forbidden], dtype=torch.int64).view(-1, 2),
        torch.tensor([wanted]),
        max_positive_share=share,
    )
    return found.index[found.kept].tolist()


def test_candidates_at_or_above_the_cap_are_dropped():
    assert mined([0.9, 0.76, 0.75, 0.5], positive=1.0, share=0.75) == [3]


def test_candidates_nearer_than_a_negative_positive_score_are_dropped():
    assert mined([0.1, -0.4, -0.52, -0.6], positive=-0.5, share=0.9) == [3]


def test_forbidden_documents_are_never_kept_and_do_not_use_up_the_wanted_number():
    assert mined([0.6, 0.5, 0.4, 0.3], positive=0.9, forbidden=[0, 2], wanted=2) == [1, 3]


def test_the_most_similar_candidates_are_kept_first():
    assert mined([0.6, 0.5, 0.4], positive=0.9, wanted=2) == [0, 1]


def test_a_query_may_end_with_fewer_negatives_than_wanted():
    assert mined([0.9, 0.3], positive=0.9, wanted=5) == [1]


def test_forbidden_pairs_concern_their_own_query_only():
    found = mine_hard_negatives(
        (torch.full((2, 3), 0.1), torch.arange(3).expand(2, -1)),
        torch.full((2,), 0.9),
        torch.tensor([[1, 0], [0, 2]]),
        torch.tensor([3, 3]),
        max_positive_share=0.95,
    )
    assert found.kept.tolist() == [[True, True, False], [False, True, True]]


class Vectors:
    """As much of a SentenceTransformer as mining asks for: the vector of each text is given."""

    device = torch.device("cpu")

    def __init__(self, vectors: dict[str, torch.Tensor]) -> None:
        self.vectors = vectors

    def encode_query(self, texts, **_):
        return torch.stack([self.vectors[text] for text in texts]).numpy()

    encode_document = encode_query

    def similarity(self, left, right):
        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left, right):
        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(1)


def test_the_same_negatives_are_mined_as_by_sentence_transformers():
    """Positives of both signs, and queries left with fewer negatives than wanted."""
    query, document = random_unit(40, 6, seed=1), random_unit(300, 6, seed=2)
    pull = torch.linspace(-1, 2, 40)[:, None]
    document[:40] = normalize(document[:40] + pull * query, dim=1)
    queries, documents = (
        [f"{kind}{n}" for n in range(len(vectors))]
        for kind, vectors in (("q", query), ("d", document))
    )
    peer = peer_mine_hard_negatives(
        Dataset.from_dict({"query": queries, "positive": documents[:40]}),
        Vectors(dict(zip(queries + documents, torch.cat([query, document]), strict=True))),
        corpus=documents,
        range_max=60,
        relative_margin=0.1,
        num_negatives=3,
        sampling_strategy="top",
        verbose=False,
    )
    expected = sorted(zip(peer["query"], peer["negative"], strict=True))

    rows = torch.arange(40)
    own_pairs = torch.stack([rows, rows], dim=1)
    positive = pair_scores(query, document, rows, rows)
    assert (positive < 0).any()
    found = mine_hard_negatives(
        top_k(query, document, 61),
        positive,
        own_pairs,
        torch.full((40,), 3),
        max_positive_share=0.9,
    )
    ours = [
        (queries[row], documents[found.index[row, k]]) for row, k in found.kept.nonzero().tolist()
    ]
    assert (found.kept.sum(1) < 3).any()
    assert sorted(ours) == expected
