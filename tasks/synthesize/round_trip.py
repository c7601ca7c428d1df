"""Whether a teacher finds the document by the query that was written for it.

Shape letters: Q = drafts, B = drafts of a block, P = documents of the pool, D = numbers per vector.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.training.data.recorded_vectors import text_keys
from tasks.params.data import RoundTrip
from tasks.params.load import Params
from tasks.synthesize.drafts import Document, Draft, Drafts
from tasks.teach.asking import ask, texts_of

BLOCK_DRAFTS = 1024
REASON = "document_not_found"

logger = logging.getLogger(__name__)


def keep_found(drafts: Drafts, pool: list[Document], params: Params, settings: RoundTrip) -> Drafts:
    """The drafts whose document is among the nearest; the others are counted as rejected.

    Args:
        drafts: What was written.
        pool: Documents among which that of a draft is looked for; it may be one of them.
        params: Says how to ask teachers.
        settings: Says which one, and how near is near.

    Raises:
        StageError: The teacher cannot be used.
    """
    if not drafts.kept:
        return drafts
    texts = [(False, document.whole) for document in pool]
    pairs = [[(True, draft.query), (False, draft.positive)] for draft in drafts.kept]
    shown = list(dict.fromkeys([*texts, *(text for pair in pairs for text in pair)]))
    asked = ask([settings.teacher], texts_of(lambda: [shown]), params.teach, params.compute)
    read = asked[settings.teacher].read
    query_Q, own_Q = (text_keys([pair[side] for pair in pairs]) for side in (0, 1))
    # a draft may hold the text alone: the whole is the same document then
    alone_P = text_keys((False, document.text) for document in pool)
    whole_P = text_keys(texts)
    pool_PD = read(whole_P).astype(np.float32)
    kept: list[Draft] = []
    for start in range(0, len(pairs), BLOCK_DRAFTS):
        block = slice(start, start + BLOCK_DRAFTS)
        own_B = own_Q[block]
        is_own_BP = (own_B[:, None] == whole_P) | (own_B[:, None] == alone_P)
        query_BD, own_BD = (read(keys[block]).astype(np.float32) for keys in (query_Q, own_Q))
        nearer_B = count_nearer(query_BD, own_BD, pool_PD, is_own_BP)
        kept += _chosen(drafts.kept[block], nearer_B < settings.top_k)
    rejected = drafts.rejected.copy()
    if dropped := len(pairs) - len(kept):
        rejected[REASON] = dropped
    logger.info(
        "by %d of %d queries %s finds their document among the nearest %d of %d",
        *(len(kept), len(pairs), settings.teacher, settings.top_k, len(pool)),
    )
    return Drafts(kept, rejected, drafts.usage)


def count_nearer(
    query_BD: npt.NDArray[np.float32],
    own_BD: npt.NDArray[np.float32],
    pool_PD: npt.NDArray[np.float32],
    is_own_BP: npt.NDArray[np.bool_],
) -> npt.NDArray[np.intp]:
    """How many of the pool, but for its own document, are nearer to each query than that (B,)."""
    own_B = (query_BD * own_BD).sum(axis=1)
    return ((query_BD @ pool_PD.T > own_B[:, None]) & ~is_own_BP).sum(axis=1)


def _chosen(drafts: Sequence[Draft], is_chosen: npt.NDArray[np.bool_]) -> list[Draft]:
    return [draft for draft, chosen in zip(drafts, is_chosen, strict=True) if chosen]
