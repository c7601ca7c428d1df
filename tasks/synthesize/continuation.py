"""The one call that makes a query by completion: examples, a passage, and the model goes on."""

from tasks.contract.records import text_id
from tasks.endpoint.failures import PromptRefusedError
from tasks.params.data import Completion, Endpoint, Synthesize
from tasks.synthesize.answers import AnswerRejectedError
from tasks.synthesize.cache import LINE_END, Prompt
from tasks.synthesize.client import Client
from tasks.synthesize.drafts import Document, Draft, Drafts
from tasks.synthesize.examples import Examples, shown_passage
from tasks.synthesize.written import written_query

SEEDS = 2**31
"""What every server takes for a seed."""


class Continuation:
    """Writes one query of one document."""

    def __init__(
        self, document: Document, slot: int, section: Synthesize, interface: Completion
    ) -> None:
        """Choose the style and the seed; nothing is asked yet."""
        turn = int(text_id(str(section.seed), document.id), 16) + slot
        self.style: str = interface.styles[turn % len(interface.styles)]
        self._seed = int(text_id(str(section.seed), document.id, str(slot)), 16) % SEEDS
        self._document = document
        self._interface = interface

    async def write(self, client: Client, endpoint: Endpoint, examples: Examples) -> Drafts:
        """One draft, or the reason why there is none.

        Raises:
            StageError: The endpoint is of no use.
        """
        drafts = Drafts()
        passage = shown_passage(self._document, self._interface.passage_characters)
        prompt = Prompt(
            examples.prompt(self.style, passage), self._interface.max_tokens, self._seed
        )
        try:
            answer = await client.ask(prompt, endpoint.temperature)
            drafts.count(answer)
            query = written_query(
                answer.text,
                self.style,
                self._document,
                examples,
                is_whole=answer.text.endswith(LINE_END),
            )
        except AnswerRejectedError as error:
            drafts.rejected[error.reason] += 1
        except PromptRefusedError:
            drafts.rejected["refused_by_endpoint"] += 1
        else:
            document = self._document
            drafts.kept.append(Draft(self.style, document.lang, query, document.whole))
        return drafts
