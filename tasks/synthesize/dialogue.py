"""The three calls that make a query: plan, writing, judgement."""

from tasks.contract.records import text_id
from tasks.endpoint.failures import PromptRefusedError
from tasks.params.data import Synthesize
from tasks.synthesize.answers import AnswerRejectedError, parse_grade, parse_plan, parse_query
from tasks.synthesize.cache import Messages
from tasks.synthesize.client import Client
from tasks.synthesize.drafts import Document, Draft, Drafts
from tasks.synthesize.prompts import (
    QUERY_WORDS,
    Plan,
    judge_messages,
    plan_messages,
    query_messages,
)

JUDGE_TEMPERATURE = 0.0


class Dialogue:
    """Writes the queries of one document, one after another, each unlike the earlier."""

    def __init__(
        self, client: Client, document: Document, *, temperature: float, min_score: int
    ) -> None:
        """Prepare; nothing is asked yet."""
        self._client = client
        self._document = document
        self._temperature = temperature
        self._min_score = min_score
        self._drafts = Drafts()
        self._plans: list[Plan] = []
        self._queries: list[str] = []

    async def write(self, section: Synthesize) -> Drafts:
        """The drafts of the document: as many as asked for, less the rejected.

        Raises:
            StageError: The endpoint is of no use.
        """
        for slot in range(section.queries_per_document):
            try:
                await self._write_one(slot, section.seed)
            except AnswerRejectedError as error:
                self._drafts.rejected[error.reason] += 1
            except PromptRefusedError:
                self._drafts.rejected["refused_by_endpoint"] += 1
        return self._drafts

    async def _write_one(self, slot: int, seed: int) -> None:
        document = self._document
        words = QUERY_WORDS[int(text_id(str(seed), document.id, str(slot)), 16) % len(QUERY_WORDS)]
        plan = parse_plan(await self._ask(plan_messages(document, self._plans), self._temperature))
        self._plans.append(plan)
        messages = query_messages(document, plan, words, self._queries)
        query = parse_query(await self._ask(messages, self._temperature), document)
        self._queries.append(query)
        grade = parse_grade(await self._ask(judge_messages(document, query), JUDGE_TEMPERATURE))
        if grade < self._min_score:
            raise AnswerRejectedError("grade_too_low")
        self._drafts.kept.append(Draft(plan.question_type, document.lang, query, document.whole))

    async def _ask(self, messages: Messages, temperature: float) -> str:
        answer = await self._client.ask(messages, temperature)
        self._drafts.count(answer)
        return answer.text
