"""Stage synthesize: queries for documents that have none, by a language model or without one."""

import logging
from collections import Counter
from itertools import islice

from tasks.contract.records import read_table, write_table
from tasks.contract.stage import StageError, atomic_folder, run_stage, write_json
from tasks.outside import recorded
from tasks.params.data import Synthesize
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.synthesize.admission import (
    HeldOut,
    Selection,
    admit,
    by_hash,
    select_documents,
)
from tasks.synthesize.drafts import Draft, Drafts
from tasks.synthesize.offline import write_offline

OFFLINE = "offline"

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the stage."""
    run_stage("synthesize", recorded("synthesize", synthesize))


def synthesize(params: Params) -> None:
    """Write artifacts/synthesize: examples/ and metrics.json.

    Raises:
        StageError: The endpoint or the teacher cannot be used, or no query of any document can.
    """
    section = params.synthesize
    ingested = ARTIFACTS / "ingest"
    held_out = HeldOut.of(
        read_table(ingested / "evaluation"),
        read_table(ingested / "development", ["query", "positives"]),
    )
    documents = read_table(ingested / "documents")
    selection = select_documents(documents, section, held_out)
    drafts = _write(selection, section)
    if section.round_trip is not None:
        # It takes ten seconds to load a teacher's libraries.
        from tasks.synthesize.round_trip import keep_found

        pool = list(islice(by_hash(documents, section.seed), section.round_trip.pool))
        drafts = keep_found(drafts, pool, params, section.round_trip)
    examples, admitted, refused = admit(drafts, held_out)
    rejected = drafts.rejected + refused
    logger.info("%d examples, rejected %s", len(admitted), dict(sorted(rejected.items())))
    if selection.documents and not admitted:
        raise StageError(
            f"none of {len(selection.documents)} documents got a query that can be used; "
            f"rejected: {dict(sorted(rejected.items()))}"
        )
    with atomic_folder(ARTIFACTS / "synthesize") as folder:
        write_table(examples, folder / "examples", shard_rows=params.ingest.shard_rows)
        write_json(
            folder / "metrics.json",
            {
                "generator": section.endpoint.model if section.endpoint else OFFLINE,
                "documents": len(selection.documents),
                "skipped_documents": dict(selection.skipped),
                "examples": len(admitted),
                "kinds": _kinds(admitted),
                "rejected": dict(rejected),
                **drafts.usage,
            },
        )


def _write(selection: Selection, section: Synthesize) -> Drafts:
    if section.endpoint is None:
        return write_offline(selection.documents, section.queries_per_document, section.seed)
    # The SDK takes half a second and is of no use without an endpoint.
    from tasks.synthesize.endpoint import write_with_endpoint

    return write_with_endpoint(selection.documents, section, section.endpoint)


def _kinds(admitted: list[Draft]) -> dict[str, int]:
    return dict(Counter(draft.kind for draft in admitted))


if __name__ == "__main__":
    main()
