"""Models that are asked and not trained: a guide that judges negatives, a teacher to imitate.

Each embeds every step once, at its full size, without a graph: each process its share of the
texts, gathered like those of the student. It has a tokenizer of its own, so it takes plain texts.
One that was asked before the training is looked up.

Shape letters: M = texts of the step, in its order, D = embedding size of the frozen model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.encoder.encoder import Encoder
from model.encoder.precision import Precision, decoder_autocast
from model.encoder.tokenization import token_budget_batches
from model.training.data.batches import Step
from model.training.data.recorded_vectors import RecordedVectors
from model.training.devices.team import Team


@dataclass(frozen=True)
class FrozenVectors:
    """What the frozen models say of texts; None where there is no such model."""

    guide_MD: Tensor | None = None
    teacher_MD: Tensor | None = None

    def split(self, lengths: Sequence[int]) -> list["FrozenVectors"]:
        """What they say of each sub-batch of the texts; these are their lengths."""

        def cut(vector_MD: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * len(lengths) if vector_MD is None else vector_MD.split(list(lengths))

        pairs = zip(cut(self.guide_MD), cut(self.teacher_MD), strict=True)
        return [FrozenVectors(*vectors) for vectors in pairs]


NO_VECTORS = FrozenVectors()


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A frozen encoder and how texts are shown to it."""

    encoder: Encoder
    query_prompt: str | None
    """Prefix of queries, and of documents of the same kind; None keeps those of the training."""
    document_prompt: str | None
    """Prefix of other documents; None keeps the prompts of the training."""
    max_length_tokens: int
    """Longer texts are cut, prompt included."""

    @torch.no_grad()
    def embed(
        self, step: Step, own: Sequence[int], team: Team, budget_tokens: int, precision: Precision
    ) -> Tensor:
        """Unit-norm float32 embeddings (M, D) of all texts of the step.

        Args:
            step: Its texts.
            own: Texts that this process embeds, rising.
            team: The processes of the training.
            budget_tokens: Tokens per forward pass.
            precision: Autocast type of the decoder.
        """
        encoder = self.encoder
        everything = self._prompted(step)
        prompted = [everything[text] for text in own]
        items = encoder.tokenize(
            [text for _, text in prompted],
            prompts=[prompt for prompt, _ in prompted],
            max_length_tokens=min(self.max_length_tokens, encoder.max_length_tokens),
        )
        lengths = [len(item.ids) for item in items]

        def embed_own() -> Tensor:
            embedding_PD = torch.empty((len(own), encoder.embedding_size), device=encoder.device)
            for micro_batch in token_budget_batches(
                lengths, budget_tokens, is_packed=encoder.is_packed
            ):
                with decoder_autocast(encoder.device, precision):
                    embedding_PD[micro_batch] = encoder.embed(
                        [items[place] for place in micro_batch]
                    )
            return embedding_PD

        return team.gather(team.together(embed_own), own, len(step.items))

    def _prompted(self, step: Step) -> list[tuple[str, str]]:
        """Prompt and text of all items of the step."""
        own_prompts = {True: self.query_prompt, False: self.document_prompt}
        prompted: list[tuple[str, str]] = []
        for sub_batch in step.sub_batches:
            for plain in sub_batch.plain_texts:
                own = own_prompts[plain.is_query]
                prompted.append((plain.prompt if own is None else own, plain.text))
        return prompted


@dataclass(frozen=True, eq=False)
class RecordedModel:
    """A model that was asked before the training; its vectors lie on disk."""

    vectors: RecordedVectors
    device: torch.device

    def embed(
        self, step: Step, own: Sequence[int], team: Team, budget_tokens: int, precision: Precision
    ) -> Tensor:
        """Unit-norm float32 embeddings (M, D) of all texts of the step, read by every process.

        Raises:
            ValueError: A text was never shown to the model.
        """
        del own, team, budget_tokens, precision
        texts = [
            (plain.is_query, plain.text)
            for sub_batch in step.sub_batches
            for plain in sub_batch.plain_texts
        ]
        return torch.from_numpy(self.vectors.find(texts)).to(self.device)


@dataclass(frozen=True)
class FrozenModels:
    """The frozen models of a training; one model may be both."""

    guide: FrozenModel | RecordedModel | None = None
    teacher: FrozenModel | RecordedModel | None = None

    def vectors(
        self, step: Step, own: Sequence[int], team: Team, budget_tokens: int, precision: Precision
    ) -> FrozenVectors:
        """What they say of a step; see `FrozenModel.embed`."""
        found = {
            model: model.embed(step, own, team, budget_tokens, precision)
            for model in dict.fromkeys((self.guide, self.teacher))
            if model is not None
        }
        return FrozenVectors(
            guide_MD=found[self.guide] if self.guide else None,
            teacher_MD=found[self.teacher] if self.teacher else None,
        )


NO_MODELS = FrozenModels()
