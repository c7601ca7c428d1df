"""Hard negatives: exact nearest documents of each query, then a cap relative to the positive.

Shape letters: Q = queries, N = documents, D = embedding size, K = candidates per query,
R = rows of a tile, W = columns of a tile or of a widened candidate list, P = forbidden pairs.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.encoder.pace import Pace

# Similarities held at a time. Larger tiles are no faster on two cores nor on an H200.
TILE_BYTES = 64 * 2**20
# Documents kept beyond K by the float32 pass, for the float64 scores to choose from.
SPARE = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HardNegatives:
    """What `mine_hard_negatives` found; ragged: a query keeps as many as `kept_QK` marks.

    Attributes:
        index_QK: Documents nearest to each query, best first.
        score_QK: Their cosines, float32.
        forbidden_QK: Candidates that are a positive of the query or otherwise ruled out.
        near_positive_QK: Candidates, not forbidden, that the cap removes.
        kept_QK: The hard negatives.
    """

    index: Tensor
    score: Tensor
    forbidden: Tensor
    near_positive: Tensor
    kept: Tensor


def mine_hard_negatives(
    candidates: tuple[Tensor, Tensor],
    positive_score_Q: Tensor,
    forbidden_P2: Tensor,
    wanted_Q: Tensor,
    *,
    max_positive_share: float,
) -> HardNegatives:
    """Keep the most similar candidates that are clearly less similar than the positive.

    Args:
        candidates: Scores and document indices, both (Q, K), of `top_k`.
        positive_score_Q: Cosine of each query and its positive; the lowest of several.
        forbidden_P2: Pairs (query, document) that are never negatives, int64.
        wanted_Q: Negatives to keep per query.
        max_positive_share: See `positive_cap`.

    Source: Moreira et al. 2024 (NV-Retriever), arXiv:2407.15831, TopK-PercPos.
    """
    score_QK, index_QK = candidates
    span = int(index_QK.max()) + 1 if index_QK.numel() else 1
    span = max(span, int(forbidden_P2[:, 1].max()) + 1 if forbidden_P2.numel() else 1)
    row_Q = torch.arange(len(index_QK), device=index_QK.device)
    forbidden_QK = torch.isin(
        row_Q[:, None] * span + index_QK, forbidden_P2[:, 0] * span + forbidden_P2[:, 1]
    )
    cap_Q = positive_cap(positive_score_Q, max_positive_share)
    near_positive_QK = ~forbidden_QK & (score_QK >= cap_Q[:, None])
    allowed_QK = ~forbidden_QK & ~near_positive_QK
    kept_QK = allowed_QK & (allowed_QK.cumsum(1) <= wanted_Q[:, None])
    return HardNegatives(index_QK, score_QK, forbidden_QK, near_positive_QK, kept_QK)


def pair_scores(
    query_QD: Tensor, document_ND: Tensor, query_P: Tensor, document_P: Tensor
) -> Tensor:
    """Cosines of given pairs of a query and a document, (P,): as exact as those of `top_k`."""
    rows = max(1, TILE_BYTES // (24 * query_QD.shape[1]))
    parts = [
        (query_QD[query_P[tile]].double() * document_ND[document_P[tile]].double()).sum(1).float()
        for tile in _tiles(len(query_P), rows)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


def positive_cap(positive_score_Q: Tensor, max_positive_share: float) -> Tensor:
    """The score a negative must stay below: s - |s| (1 - share) for a positive of score s.

    Equal to share * s for s > 0. Where s <= 0 the product would lie above s, so that documents
    nearer than the positive passed as negatives; this form lies below it (sentence-transformers).
    """
    return positive_score_Q - positive_score_Q.abs() * (1.0 - max_positive_share)


def top_k(
    query_QD: Tensor, document_ND: Tensor, k: int, *, tile_bytes: int = TILE_BYTES
) -> tuple[Tensor, Tensor]:
    """The k documents of largest dot product with each query, exactly, in bounded memory.

    The product counted is the float64 one rounded to float32, equal products go to the lower
    index: the answer depends neither on the tiles nor on the order in which a device sums. A
    float32 pass gives k + SPARE documents; where these do not provably hold the answer, the
    query is searched again in float64.

    Args:
        query_QD: Unit-norm queries, float32.
        document_ND: Unit-norm documents, float32; may lie on the CPU while the queries do not,
            and may be memory-mapped.
        k: Documents per query; all of them when there are fewer.
        tile_bytes: Memory for similarities at a time; the Q x N matrix never exists.

    Returns:
        Scores, float32, and document indices, int64, both (Q, k), best first.

    Raises:
        ValueError: k is below 1, sizes differ, there is no document, or a vector holds NaN.
    """
    _check(query_QD, document_ND, k)
    k = min(k, len(document_ND))
    wide_index_QW, unseen_Q = _approximate(query_QD, document_ND, k, tile_bytes)
    score_QK, index_QK = _rescore(query_QD, document_ND, wide_index_QW, k, tile_bytes)
    doubtful_R = (score_QK[:, -1] <= unseen_Q).nonzero().squeeze(1)
    if len(doubtful_R):
        logger.info("%d of %d queries need the float64 search", len(doubtful_R), len(query_QD))
        score_RK, index_RK = _exact(query_QD[doubtful_R], document_ND, k, tile_bytes)
        score_QK[doubtful_R], index_QK[doubtful_R] = score_RK, index_RK
    return score_QK, index_QK


def _check(query_QD: Tensor, document_ND: Tensor, k: int) -> None:
    if k < 1 or not len(document_ND) or not len(query_QD):
        raise ValueError(
            f"cannot take the {k} nearest of {len(document_ND)} documents for {len(query_QD)} "
            "queries: each number must be at least 1"
        )
    if query_QD.shape[1:] != document_ND.shape[1:]:
        raise ValueError(
            f"queries of size {tuple(query_QD.shape[1:])} cannot be compared with documents of "
            f"size {tuple(document_ND.shape[1:])}: encode both with one model"
        )
    for name, vectors in (("query", query_QD), ("document", document_ND)):
        if not torch.isfinite(vectors.sum()):
            raise ValueError(f"{name} embeddings hold NaN or infinity: the encoder is broken")


def _tiles(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _tile_shape(num_queries: int, num_documents: int, item_bytes: int) -> tuple[int, int]:
    """Rows and columns of a tile: four times as wide as high, since a wide one merges less."""
    columns = min(num_documents, max(1, 2 * int(item_bytes**0.5)))
    return min(num_queries, max(1, item_bytes // columns)), columns


def _approximate(
    query_QD: Tensor, document_ND: Tensor, k: int, tile_bytes: int
) -> tuple[Tensor, Tensor]:
    """Candidates by float32 products, and an upper bound of the product of any other document."""
    num_queries, device = len(query_QD), query_QD.device
    wide = min(k + SPARE, len(document_ND))
    best_QW = torch.full((num_queries, wide), -torch.inf, device=device)
    index_QW = torch.zeros((num_queries, wide), dtype=torch.int64, device=device)
    rows, columns = _tile_shape(num_queries, len(document_ND), tile_bytes // 4)
    # one buffer for all tiles: fresh pages cost as much as the products
    buffer = torch.empty(rows * columns, device=device)
    pace = Pace(len(document_ND), shows_last=False)
    for document in _tiles(len(document_ND), columns):
        tile_WD = document_ND[document].to(device)
        for query in _tiles(num_queries, rows):
            queries_RD = query_QD[query]
            tile_RW = buffer[: len(queries_RD) * len(tile_WD)].view(len(queries_RD), len(tile_WD))
            torch.mm(queries_RD, tile_WD.T, out=tile_RW)
            score_RW, column_RW = tile_RW.topk(min(wide, len(tile_WD)))
            score_RW = torch.cat([best_QW[query], score_RW], dim=1)
            column_RW = torch.cat([index_QW[query], column_RW + document.start], dim=1)
            best_QW[query], place_RW = score_RW.topk(wide)
            index_QW[query] = column_RW.gather(1, place_RW)
        if pace.is_due(document.stop):
            logger.info("searched %d of %d documents", document.stop, len(document_ND))
    if wide == len(document_ND):
        return index_QW, torch.full((num_queries,), -torch.inf, device=device)
    # a float32 dot product of D terms is off by less than D * 2^-24 |q| |d|, two more roundings
    # stand between it and the comparison
    error = (query_QD.shape[1] + 2) * 2.0**-24 * _largest_norm(query_QD)
    return index_QW, best_QW[:, -1] + error * _largest_norm(document_ND)


def _largest_norm(vector_ND: Tensor) -> float:
    return max(float(vector_ND[tile].norm(dim=1).max()) for tile in _tiles(len(vector_ND), 65536))


def _rescore(
    query_QD: Tensor, document_ND: Tensor, index_QW: Tensor, k: int, tile_bytes: int
) -> tuple[Tensor, Tensor]:
    """The k best of the candidates by the float64 product; ties to the lower index."""
    # ascending indices, so that a stable sort by score breaks ties as promised
    index_QW = index_QW.sort(dim=1).values
    score_QW = torch.empty(index_QW.shape, device=query_QD.device)
    # an eighth: small enough for the allocator to hand out the same pages again
    rows = max(1, tile_bytes // (8 * 12 * index_QW.shape[1] * query_QD.shape[1]))
    for tile in _tiles(len(query_QD), rows):
        chosen_RWD = document_ND[index_QW[tile].to(document_ND.device)].to(query_QD.device).double()
        score_QW[tile] = (chosen_RWD @ query_QD[tile, :, None].double()).squeeze(2).float()
    order_QK = score_QW.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return score_QW.gather(1, order_QK), index_QW.gather(1, order_QK)


def _exact(query_RD: Tensor, document_ND: Tensor, k: int, tile_bytes: int) -> tuple[Tensor, Tensor]:
    """The definition itself, tile by tile in float64: for near-ties such as repeated documents."""
    rows, columns = _tile_shape(len(query_RD), len(document_ND), tile_bytes // 32)
    parts = [
        _exact_rows(query_RD[tile], document_ND, k, columns) for tile in _tiles(len(query_RD), rows)
    ]
    return torch.cat([score for score, _ in parts]), torch.cat([index for _, index in parts])


def _exact_rows(
    query_RD: Tensor, document_ND: Tensor, k: int, columns: int
) -> tuple[Tensor, Tensor]:
    device = query_RD.device
    score_RK = torch.empty((len(query_RD), 0), device=device)
    index_RK = torch.empty((len(query_RD), 0), dtype=torch.int64, device=device)
    for tile in _tiles(len(document_ND), columns):
        tile_RW = (query_RD.double() @ document_ND[tile].to(device).double().T).float()
        column_W = torch.arange(tile.start, tile.stop, device=device)
        score_RK = torch.cat([score_RK, tile_RW], dim=1)
        index_RK = torch.cat([index_RK, column_W.expand_as(tile_RW)], dim=1)
        place_RK = _largest_first_wins(score_RK, min(k, score_RK.shape[1]))
        score_RK, index_RK = score_RK.gather(1, place_RK), index_RK.gather(1, place_RK)
    order_RK = score_RK.sort(dim=1, descending=True, stable=True).indices
    return score_RK.gather(1, order_RK), index_RK.gather(1, order_RK)


def _largest_first_wins(score_RW: Tensor, k: int) -> Tensor:
    """Positions, ascending, of the k largest of each row; of equal ones the first are taken."""
    smallest_R1 = score_RW.topk(k).values[:, -1:]
    above_RW = score_RW > smallest_R1
    level_RW = score_RW == smallest_R1
    room_R1 = k - above_RW.sum(1, keepdim=True)
    keep_RW = above_RW | (level_RW & (level_RW.cumsum(1) <= room_R1))
    return keep_RW.nonzero()[:, 1].view(len(score_RW), k)
