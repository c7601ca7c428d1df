"""Lower blocks that are not trained: run once for every text of a training, then looked up.

A step of a training costs some six operations per weight of the blocks and token, of which a frozen
block needs the two of its forward pass, and those once per text instead of once per step. What is
left to a step are the blocks above. Source: freezing lower layers, Lee et al. 2019,
arXiv:1911.03090; Brock et al. 2017 (FreezeOut), arXiv:1706.04983.

Shape letters: B = texts, N = tokens of texts laid end to end, H = hidden size of the decoder,
D = size of the vectors.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from model.encoder.blocks import named_blocks
from model.encoder.encoder import PROBE_TEXTS, Encoder
from model.encoder.pace import Pace
from model.encoder.packing import pack, run_packed
from model.encoder.pooling.build import LayerPooling
from model.encoder.precision import Precision, decoder_autocast
from model.encoder.tokenization import TokenizedText, token_budget_batches
from model.pruning import remove_blocks
from model.training.data.batches import BatchPlan
from model.training.data.recorded_states import Ids, RecordedStates
from model.training.devices.wrapping import first_text
from model.training.settings import TrainSettings

PoolTexts = Callable[[Tensor, Callable[[Tensor, Tensor], Tensor]], Tensor]
LARGEST_DISTANCE = 1e-3
"""Cosine distance of a probe's vectors, by all blocks and by looked up states."""

logger = logging.getLogger(__name__)


class StateLookup(nn.Module):
    """In the place of an embedding table: rows of recorded states by their numbers."""

    def __init__(self, states: RecordedStates, device: torch.device) -> None:
        super().__init__()
        self.states = states
        self._device = device

    def forward(self, place_BN: Tensor) -> Tensor:
        """States (B, N, H)."""
        rows = self.states.rows(place_BN.cpu().numpy())
        return torch.from_numpy(rows).to(self._device, non_blocking=True)


class UpperEncoder(Encoder):
    """The blocks of an encoder above the frozen ones, its pooling and projection: the same weights.

    It takes texts by their token ids, as the whole encoder does, and knows those of one training.
    """

    def __init__(self, whole: Encoder, frozen: int, states: RecordedStates) -> None:
        """Share the weights of `whole`.

        Raises:
            ValueError: The blocks cannot be cut apart.
        """
        upper = with_shared_weights(whole.backbone)
        remove_blocks(upper, range(frozen))
        upper.set_input_embeddings(StateLookup(states, whole.device))
        super().__init__(
            upper, whole.tokenizer, whole.settings, max_length_tokens=whole.max_length_tokens
        )
        self.pooling, self.projection = whole.pooling, whole.projection
        self._states = states

    def _run_packed(self, items: Sequence[TokenizedText]) -> tuple[BaseModelOutput, PoolTexts]:
        places = [replace(item, ids=list(self._states.places(item.ids))) for item in items]
        return super()._run_packed(places)


class LowerBlocks:
    """The frozen blocks of an encoder: token ids in, states out."""

    def __init__(self, whole: Encoder, frozen: int) -> None:
        self._decoder = with_shared_weights(whole.backbone).eval()
        count = whole.backbone.config.num_hidden_layers
        remove_blocks(self._decoder, range(frozen, count))
        # the state before the norm that a decoder ends with
        named_blocks(self._decoder)[1][-1].register_forward_hook(self._keep)
        self._state_NH = torch.empty(0)

    def _keep(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del block, inputs
        self._state_NH = (output if isinstance(output, Tensor) else output[0])[0]

    @torch.no_grad()
    def states(self, texts: Sequence[Ids], budget_tokens: int, precision: Precision) -> np.ndarray:
        """States (N, H) of the texts, end to end, in float32."""
        device = self._decoder.device
        found: dict[int, Tensor] = {}
        for batch in token_budget_batches(
            [len(ids) for ids in texts], budget_tokens, is_packed=True
        ):
            # `pack` lays them so too: then the states are in this order
            longest_first = sorted(batch, key=lambda text: -len(texts[text]))
            items = [TokenizedText(list(texts[text]), 0) for text in longest_first]
            with decoder_autocast(device, precision):
                run_packed(self._decoder, pack(items, pool_prompt=True, device=device))
            parts = self._state_NH.float().cpu().split([len(item.ids) for item in items])
            found |= dict(zip(longest_first, parts, strict=True))
        return torch.cat([found[text] for text in range(len(texts))]).numpy()


def with_shared_weights(decoder: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules and the config, whose weights are those of `decoder` themselves."""
    weights = (*decoder.parameters(), *decoder.buffers())
    return copy.deepcopy(decoder, {id(weight): weight for weight in weights})


def above_frozen_blocks(
    encoder: Encoder, plan: BatchPlan, settings: TrainSettings, folder: Path
) -> UpperEncoder:
    """What is trained of `encoder`: its weights above the frozen blocks, and no others.

    Runs the frozen blocks over all texts of the training, unless `folder` has their states.

    Raises:
        ValueError: The encoder has no such blocks, or cannot be cut there.
    """
    frozen = settings.frozen_blocks
    count = encoder.backbone.config.num_hidden_layers
    if not frozen < count:
        raise ValueError(
            f"frozen_blocks is {frozen}, but the decoder has {count} blocks and one at least is "
            f"trained: set frozen_blocks below {count}"
        )
    if isinstance(encoder.pooling, LayerPooling):
        raise ValueError(  # noqa: TRY004 - a setting, not an argument of another type
            "frozen_blocks with multilayer pooling: it reads the states of every block; take "
            "another pooling, or set frozen_blocks to 0"
        )
    if not encoder.is_packed:
        raise ValueError(
            f"frozen_blocks needs texts laid end to end, which {type(encoder.backbone).__name__} "
            "with this attention does not do: set backbone.attn_implementation to sdpa, or "
            "frozen_blocks to 0"
        )
    probes = encoder.tokenize(list(PROBE_TEXTS), max_length_tokens=settings.max_length_tokens)
    states = RecordedStates(
        folder,
        _texts(encoder, plan, settings, probes),
        encoder.backbone.config.hidden_size,
    )
    _record(states, LowerBlocks(encoder, frozen), settings)
    upper = UpperEncoder(encoder.eval(), frozen, states)
    _prove(encoder, upper.eval(), probes, settings.precision)
    return upper


def _texts(
    encoder: Encoder, plan: BatchPlan, settings: TrainSettings, probes: Sequence[TokenizedText]
) -> Iterator[Ids]:
    """Every text of the training, in the order in which the steps need them."""
    yield first_text(encoder, settings).ids
    yield from (item.ids for item in probes)
    for step in range(1, settings.max_steps + 1):
        yield from (item.ids for item in plan.step(step).items)


def _record(states: RecordedStates, lower: LowerBlocks, settings: TrainSettings) -> None:
    logger.info(
        "%d frozen blocks: states of %d texts, %d tokens",
        settings.frozen_blocks,
        states.num_texts,
        states.tokens,
    )
    done = states.num_written
    pace = Pace(states.num_texts, done=done)
    for texts in states.missing():
        states.append(lower.states(texts, settings.micro_batch_tokens, settings.precision))
        done += len(texts)
        if pace.is_due(done):
            logger.info("%d of %d, %.0f s left", done, states.num_texts, pace.seconds_left)


@torch.no_grad()
def _prove(
    whole: Encoder, upper: Encoder, probes: Sequence[TokenizedText], precision: Precision
) -> None:
    """Check that looked up states lead where the whole decoder leads.

    Raises:
        ValueError: They do not.
    """
    with decoder_autocast(whole.device, precision):
        distance = 1 - F.cosine_similarity(whole.embed(probes), upper.embed(probes)).min().item()
    if not distance <= LARGEST_DISTANCE:
        raise ValueError(
            f"{type(whole.backbone).__name__} cannot be cut above its block "
            f"{whole.backbone.config.num_hidden_layers - upper.backbone.config.num_hidden_layers}: "
            f"vectors differ by a cosine distance of {distance:.2g}; set frozen_blocks to 0"
        )
