"""Queries for many documents by a language model, a bounded number of requests at a time."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from tasks.contract.stage import StageError, record_at_end
from tasks.params.data import API_KEY_VARIABLE, Chat, Endpoint, Synthesize
from tasks.params.paths import LLM_CACHE
from tasks.synthesize.cache import AnswerCache, open_cache
from tasks.synthesize.client import Client
from tasks.synthesize.continuation import Continuation
from tasks.synthesize.dialogue import Dialogue
from tasks.synthesize.drafts import Document, Drafts
from tasks.synthesize.examples import read_examples

LOG_EVERY_S = 5.0

_COUNTED = ("answered", "from_cache", "prompt_tokens", "completion_tokens")
"""Counts of this run alone: those of metrics.json are the same however often it was killed."""

logger = logging.getLogger(__name__)


class _Writer(NamedTuple):
    beginning: str
    """Says which prompts begin alike: they follow each other, since servers keep what they made of
    the last one."""
    write: Callable[[], Awaitable[Drafts]]


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
    client = Client(endpoint, cache, os.environ.get(API_KEY_VARIABLE))
    writers = _writers(documents, section, endpoint, client)
    results: list[Drafts | None] = [None] * len(writers)
    pending = iter(sorted(range(len(writers)), key=lambda number: writers[number].beginning))

    async def work() -> None:
        for number in pending:
            try:
                results[number] = await writers[number].write()
            except StageError:
                # Other workers finish the request they have paid for, then stop as well.
                return

    started = time.monotonic()
    reporting = asyncio.create_task(_report(client, results))
    try:
        await asyncio.gather(*(work() for _ in range(endpoint.concurrency)))
    finally:
        reporting.cancel()
        await client.close()
        logger.info("%s", _progress(client, results))
    asking_s = round(time.monotonic() - started, 2)
    record_at_end(lambda: {"asking_s": asking_s} | {name: client.counts[name] for name in _COUNTED})
    if client.failure is not None:
        raise client.failure
    drafts = Drafts()
    for result in results:
        drafts.extend(result or Drafts())
    return drafts


def _writers(
    documents: list[Document], section: Synthesize, endpoint: Endpoint, client: Client
) -> list[_Writer]:
    interface = endpoint.interface
    if isinstance(interface, Chat):
        dialogues = (
            Dialogue(
                client, document, temperature=endpoint.temperature, min_score=interface.min_score
            )
            for document in documents
        )
        return [_Writer("", partial(dialogue.write, section)) for dialogue in dialogues]
    examples = {name: read_examples(name) for name in set(interface.examples.values())}
    writers: list[_Writer] = []
    for document in documents:
        name = interface.examples[document.source]
        for slot in range(section.queries_per_document):
            continuation = Continuation(document, slot, section, interface)
            write = partial(continuation.write, client, endpoint, examples[name])
            writers.append(_Writer(f"{name} {continuation.style}", write))
    return writers


async def _report(client: Client, results: list[Drafts | None]) -> None:
    """Log the progress every few seconds until cancelled."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(LOG_EVERY_S)
        asked = client.counts["answered"]
        rate = asked / (time.monotonic() - started)
        logger.info("%s, %.1f requests/s", _progress(client, results), rate)


def _progress(client: Client, results: list[Drafts | None]) -> str:
    finished = [result for result in results if result is not None]
    kept = sum(len(result.kept) for result in finished)
    rejected = sum(result.rejected.total() for result in finished)
    counts = client.counts
    return (
        f"{len(finished)}/{len(results)} asked about, {kept} queries kept, {rejected} rejected; "
        f"{counts['answered']} answers, {counts['from_cache']} from the cache, "
        f"{counts['retried']} asked again"
    )
