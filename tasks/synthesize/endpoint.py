"""Queries for many documents by a language model, a bounded number of requests at a time."""

import asyncio
import logging
import os
import time

from tasks.contract.stage import StageError
from tasks.params.data import API_KEY_VARIABLE, Endpoint, Synthesize
from tasks.params.paths import LLM_CACHE
from tasks.synthesize.cache import AnswerCache, open_cache
from tasks.synthesize.client import ChatClient
from tasks.synthesize.dialogue import Dialogue
from tasks.synthesize.drafts import Document, Drafts

LOG_EVERY_S = 5.0

logger = logging.getLogger(__name__)


def write_with_endpoint(
    documents: list[Document], section: Synthesize, endpoint: Endpoint
) -> Drafts:
    """Drafts of every document, in its order.

    Raises:
        StageError: The endpoint is of no use; the answers so far are in the cache.
    """
    with open_cache(LLM_CACHE) as cache:
        return asyncio.run(_write_all(documents, section, endpoint, cache))


async def _write_all(
    documents: list[Document], section: Synthesize, endpoint: Endpoint, cache: AnswerCache
) -> Drafts:
    client = ChatClient(endpoint, cache, os.environ.get(API_KEY_VARIABLE))
    results: list[Drafts | None] = [None] * len(documents)
    pending = iter(enumerate(documents))

    async def work() -> None:
        for number, document in pending:
            dialogue = Dialogue(
                client, document, temperature=endpoint.temperature, min_score=endpoint.min_score
            )
            try:
                results[number] = await dialogue.write(section)
            except StageError:
                # Other workers finish the request they have paid for, then stop as well.
                return

    reporting = asyncio.create_task(_report(client, results))
    try:
        await asyncio.gather(*(work() for _ in range(endpoint.concurrency)))
    finally:
        reporting.cancel()
        await client.close()
        logger.info("%s", _progress(client, results))
    if client.failure is not None:
        raise client.failure
    drafts = Drafts()
    for result in results:
        drafts.extend(result or Drafts())
    return drafts


async def _report(client: ChatClient, results: list[Drafts | None]) -> None:
    """Log the progress every few seconds until cancelled."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(LOG_EVERY_S)
        asked = client.counts["answered"]
        rate = asked / (time.monotonic() - started)
        logger.info("%s, %.1f requests/s", _progress(client, results), rate)


def _progress(client: ChatClient, results: list[Drafts | None]) -> str:
    finished = [result for result in results if result is not None]
    kept = sum(len(result.kept) for result in finished)
    rejected = sum(result.rejected.total() for result in finished)
    counts = client.counts
    return (
        f"{len(finished)}/{len(results)} documents, {kept} queries kept, {rejected} rejected; "
        f"{counts['answered']} answers, {counts['from_cache']} from the cache, "
        f"{counts['retried']} asked again"
    )
