"""Stage mine: hard negatives for labelled pairs, found with the model of stage 1 or a teacher."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.encoder.compilation import compile_blocks
from model.encoder.encoder import Encoder
from model.encoder.precision import Precision
from model.mining import HardNegatives, mine_hard_negatives, pair_scores, positive_cap, top_k
from model.training.data.recorded_vectors import RecordedVectors
from tasks.contract.prompts import query_prompt
from tasks.contract.records import EXAMPLE_SCHEMA, read_table, write_table
from tasks.contract.stage import StageError, atomic_folder, run_stage, write_json
from tasks.machine.compute import use_compute
from tasks.mine.texts import MiningTexts, RowNumbers
from tasks.params.load import Mine, Params
from tasks.params.paths import ARTIFACTS

# Shares whose removal rate is reported, to choose max_positive_share by.
SHARES = (0.8, 0.85, 0.9, 0.95, 1.0)
AUDITED = 5
# Removal above it leaves few queries with all their negatives.
STRICT = 0.9

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("mine", mine)


def mine(params: Params) -> None:
    """Write artifacts/mine: the rows of the mined sources with their negatives filled up.

    Raises:
        StageError: A source has no rows, its task takes negatives from elsewhere, the model of
            stage 1 cannot be used, or the teacher was not shown a text.
    """
    examples = read_mined_sources(params)
    corpus = draw_corpus(params)
    prompts = {
        task: query_prompt(params.prompts, task) for task in examples["task"].unique().to_pylist()
    }
    texts = MiningTexts(examples, prompts, corpus)
    logger.info("%d queries, %d candidates", len(texts.queries), texts.num_candidates)
    try:
        vectors = _vectors(params, texts)
        table, metrics = fill_negatives(examples, texts, vectors, params.mine)
    except ValueError as error:
        raise StageError(f"mining with artifacts/{params.mine.model} failed: {error}") from error
    with atomic_folder(ARTIFACTS / "mine") as folder:
        write_table(table, folder / "examples", shard_rows=params.ingest.shard_rows)
        write_json(folder / "metrics.json", metrics)
    logger.info("mined %d negatives for %d rows", metrics["negatives_mined"], len(table))


def _vectors(params: Params, texts: MiningTexts) -> tuple[Tensor, Tensor]:
    """Of queries and documents, by the student or as a teacher said before."""
    machine = use_compute(params.compute)
    teacher = params.mine.recorded_by
    if teacher is not None:
        recorded = RecordedVectors(ARTIFACTS / "teach" / "vectors" / teacher)
        query_QD = recorded.find([(True, query) for _, query in texts.queries])
        document_ND = recorded.find([(False, document) for document in texts.documents])
        return torch.from_numpy(query_QD).to(machine.device), torch.from_numpy(document_ND)
    encoder = Encoder.load(
        ARTIFACTS / params.mine.model,
        device=machine.device,
        attn_implementation=params.backbone.attn_implementation,
    )
    if machine.compile_blocks:
        compile_blocks(encoder.backbone)
    return encode(encoder, texts, params.mine, machine.precision)


def draw_corpus(params: Params) -> pa.Table:
    """Titles and texts of the documents that are candidates, in their order."""
    corpus = read_table(ARTIFACTS / "ingest" / "documents", ["title", "text"])
    wanted = params.mine.max_documents
    if wanted is None or wanted >= len(corpus):
        return corpus
    logger.info("%d of %d documents are candidates (mine.max_documents)", wanted, len(corpus))
    drawn = np.random.default_rng(params.mine.seed).permutation(len(corpus))[:wanted]
    return corpus.take(pa.array(np.sort(drawn)))


def read_mined_sources(params: Params) -> pa.Table:
    """Rows of mine.sources, in the order of their tables.

    Raises:
        StageError: A source has no rows, or a task for which documents are no negatives.
    """
    tables = [read_table(ARTIFACTS / "ingest" / "examples")]
    if "synthetic" in params.mine.sources:
        tables.append(read_table(ARTIFACTS / "synthesize" / "examples"))
    table = pa.concat_tables(tables)
    sources = np.array(table["source"].to_pylist(), dtype=object)
    table = table.filter(pa.array(np.isin(sources, params.mine.sources)))
    absent = sorted(set(params.mine.sources) - set(table["source"].to_pylist()))
    if absent:
        raise StageError(
            f"mine.sources {absent} have no examples: correct the names, or see "
            "artifacts/ingest/quarantine for why their rows were refused"
        )
    return table.combine_chunks()


def fill_negatives(
    examples: pa.Table,
    texts: MiningTexts,
    vectors: tuple[Tensor, Tensor],
    settings: Mine,
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows, explicit negatives before mined ones, all texts scored; and the metrics."""
    query_QD, document_ND = vectors
    scores_QK, index_QK = top_k(query_QD, document_ND[: texts.num_candidates], settings.top_k)
    query_of_R = torch.from_numpy(texts.query_of_row)
    query_RD = query_QD.cpu()[query_of_R]
    positive_R = lowest_positive(texts, query_RD, document_ND)
    explicit_R = torch.from_numpy(np.bincount(texts.negatives.row_P, minlength=len(examples)))
    found = mine_hard_negatives(
        (scores_QK.cpu()[query_of_R], index_QK.cpu()[query_of_R]),
        positive_R,
        texts.forbidden.tensor(),
        (settings.negatives - explicit_R).clamp(min=0),
        max_positive_share=settings.max_positive_share,
    )
    explicit_scores = _scores_of(texts.negatives, query_RD, document_ND)
    table = _with_negatives(examples, texts, explicit_scores, found)
    table = _with_positive_scores(table, texts, query_RD, document_ND)
    metrics = measure(texts, positive_R, found)
    if metrics["removed_by_cap_share"] > STRICT:
        logger.warning(
            "mine.max_positive_share %s removes %.1f %% of the candidates: this model packs its "
            "cosines; choose the share by removed_by_cap_share_at in artifacts/mine/metrics.json",
            settings.max_positive_share,
            100 * metrics["removed_by_cap_share"],
        )
    counts = [len(negatives) for negatives in table["negatives"].to_pylist()]
    metrics["rows_without_negatives"] = counts.count(0)
    metrics["short_share"] = _share(
        sum(count < settings.negatives for count in counts), len(counts)
    )
    metrics["audit_ids"] = table["id"].slice(0, AUDITED).to_pylist()
    return table, metrics


def encode(
    encoder: Encoder, texts: MiningTexts, settings: Mine, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Vectors of queries, prompts before them, on the encoder's device; of documents on the CPU."""
    query_QD = np.empty((len(texts.queries), encoder.embedding_size), dtype=np.float32)
    limits: dict[str, Any] = {
        "batch_tokens": settings.batch_tokens,
        "max_length_tokens": settings.max_length_tokens,
        "precision": precision,
    }
    for prompt in sorted({prompt for prompt, _ in texts.queries}):
        numbers = [number for number, (own, _) in enumerate(texts.queries) if own == prompt]
        query_QD[numbers] = encoder.encode(
            [texts.queries[number][1] for number in numbers], prompt=prompt, **limits
        )
    document_ND = encoder.encode(texts.documents, **limits)
    return torch.from_numpy(query_QD).to(encoder.device), torch.from_numpy(document_ND)


def lowest_positive(texts: MiningTexts, query_RD: Tensor, document_ND: Tensor) -> Tensor:
    """Lowest cosine of each row's query with a positive of any row that asks the same, (R,)."""
    scores = _scores_of(texts.positives, query_RD, document_ND).numpy()
    lowest = np.full(texts.group_of_row.max() + 1, np.inf, dtype=np.float32)
    np.minimum.at(lowest, texts.group_of_row[texts.positives.row_P], scores)
    return torch.from_numpy(lowest[texts.group_of_row])


def measure(texts: MiningTexts, positive_R: Tensor, found: HardNegatives) -> dict[str, Any]:
    """Counts and rates by which a person can calibrate the cap."""
    open_RK = ~found.forbidden
    num_open = int(open_RK.sum())
    rates = {
        f"{share:.2f}": _share(
            int((open_RK & (found.score >= positive_cap(positive_R, share)[:, None])).sum()),
            num_open,
        )
        for share in SHARES
    }
    mined = found.score[found.kept]
    return {
        "rows": len(positive_R),
        "queries": len(texts.queries),
        "corpus": texts.num_candidates,
        "candidates": found.index.numel(),
        "candidates_forbidden": int(found.forbidden.sum()),
        "candidates_too_near": int(found.near_positive.sum()),
        "removed_by_cap_share": _share(int(found.near_positive.sum()), num_open),
        "removed_by_cap_share_at": rates,
        "negatives_explicit": len(texts.negatives.row_P),
        "negatives_mined": int(found.kept.sum()),
        "mean_positive_score": round(float(positive_R.mean()), 6),
        "mean_negative_score": round(float(mined.mean()), 6) if len(mined) else None,
    }


def _scores_of(pairs: RowNumbers, query_RD: Tensor, document_ND: Tensor) -> Tensor:
    pair_P2 = pairs.tensor()
    return pair_scores(query_RD, document_ND, pair_P2[:, 0], pair_P2[:, 1])


def _with_negatives(
    examples: pa.Table, texts: MiningTexts, explicit_scores: Tensor, found: HardNegatives
) -> pa.Table:
    negatives: list[list[str]] = [[] for _ in range(len(examples))]
    scores: list[list[float]] = [[] for _ in range(len(examples))]
    mined_P2 = found.kept.nonzero()
    rows = np.concatenate([texts.negatives.row_P, mined_P2[:, 0].numpy()])
    numbers = np.concatenate([texts.negatives.number_P, found.index[found.kept].numpy()])
    values = torch.cat([explicit_scores, found.score[found.kept]])
    for row, number, value in zip(rows.tolist(), numbers.tolist(), values.tolist(), strict=True):
        negatives[row].append(texts.documents[number])
        scores[row].append(value)
    for name, column in (("negatives", negatives), ("negative_scores", scores)):
        field = EXAMPLE_SCHEMA.field(name)
        place = examples.schema.get_field_index(name)
        examples = examples.set_column(place, field, pa.array(column, field.type))
    return examples


def _with_positive_scores(
    examples: pa.Table, texts: MiningTexts, query_RD: Tensor, document_ND: Tensor
) -> pa.Table:
    scores = _scores_of(texts.positives, query_RD, document_ND).numpy()
    ends = np.cumsum(np.bincount(texts.positives.row_P, minlength=len(examples)))
    field = EXAMPLE_SCHEMA.field("positive_scores")
    lists = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()), pa.array(scores, pa.float32())
    )
    place = examples.schema.get_field_index(field.name)
    return examples.set_column(place, field, lists.cast(field.type))


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


if __name__ == "__main__":
    main()
