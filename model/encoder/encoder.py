"""The embedding model: decoder, pooling, L2 norm; and encoding many texts with it.

Shape letters: B = texts of a batch, T = tokens, D = embedding size, N = texts of a call.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from model.encoder.export import load_parts, save_parts
from model.encoder.pace import Pace
from model.encoder.packing import PACKED, can_pack, pack, run_packed
from model.encoder.pooling.build import LayerPooling, PoolingSettings, build_pooling
from model.encoder.pooling.projection import build_projection
from model.encoder.precision import Precision, decoder_autocast
from model.encoder.tokenization import (
    TokenizedText,
    check_no_bos,
    check_prompt_ends,
    collate,
    plain_tokenizer,
    token_budget_batches,
    tokenize,
)

__all__ = ["Encoder", "TokenizedText", "collate"]

TokenPooling = Callable[[Tensor, Tensor], Tensor]
"""States (B, T, D) and a mask (B, T) to vectors (B, D)."""
PoolTexts = Callable[[Tensor, TokenPooling], Tensor]
"""States of a layer, as the decoder gave them, and a pooling to a vector per text."""
TOKENIZE_CHUNK = 10_000
HELD_NUMBERS = 2**24
"""Numbers of vectors that stay on the device until they are fetched together."""
PROBE_TEXTS = ("Да.", "Кипящая вода остыла.", "Water boils at 100 °C. " * 4)
MAX_CHANGE_BY_SAVING = 1e-4
"""Largest change of a number of a vector once it is read back, by another kernel in float32."""
MAX_CHANGE_BY_SAVING_BF16 = 3e-2
"""The same with kernels that work in bfloat16."""

logger = logging.getLogger(__name__)


class Encoder(nn.Module):
    """Texts to unit-norm vectors.

    Attributes:
        backbone: The decoder without its language-model head.
        tokenizer: Right padded; ends each text with EOS.
        pooling: States (B, T, D) and a mask (B, T) to vectors (B, D), in float32; a
            `LayerPooling` takes the states of all layers (B, L, D).
        projection: Pooled vectors to those of another size, in float32; None where there is none.
        settings: How texts are pooled.
        max_length_tokens: Longer inputs are cut, prompt included.
        prompts: Named prompts stored with the model.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        settings: PoolingSettings,
        *,
        max_length_tokens: int,
        prompts: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = plain_tokenizer(tokenizer)
        self.settings = settings
        self.pooling = build_pooling(
            settings,
            hidden_size=backbone.config.hidden_size,
            num_layers=backbone.config.num_hidden_layers,
        )
        self.projection = (
            build_projection(backbone.config.hidden_size, settings.projection)
            if settings.projection
            else None
        )
        self.max_length_tokens = max_length_tokens
        self.prompts = dict(prompts or {})
        if can_pack(backbone):
            backbone.set_attn_implementation(PACKED)

    @property
    def is_packed(self) -> bool:
        """Whether texts run end to end, without padding; else the decoder does not allow it."""
        return self.backbone.config._attn_implementation == PACKED

    @property
    def embedding_size(self) -> int:
        """Numbers per vector, D."""
        return self.settings.projection or self.backbone.config.hidden_size

    @property
    def pool_prompt(self) -> bool:
        """Whether the tokens of the prompt take part in pooling."""
        return self.settings.pool_prompt

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.backbone.parameters()).device

    @property
    def pad_id(self) -> int:
        """Token id that fills the right side of a batch."""
        return int(self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]  # one id, never a list

    def tokenize(
        self,
        texts: list[str],
        *,
        prompts: list[str] | None = None,
        max_length_tokens: int | None = None,
    ) -> list[TokenizedText]:
        """Token ids of each prompt and text together, in order; see `tokenization.tokenize`."""
        limit = max_length_tokens or self.max_length_tokens
        return tokenize(self.tokenizer, texts, prompts or [""] * len(texts), limit)

    def forward(
        self, input_ids_BT: Tensor, attention_mask_BT: Tensor, pool_mask_BT: Tensor
    ) -> Tensor:
        """Unit-norm float32 vectors (B, D); pooling runs in float32 under autocast too."""
        output = self._run(input_ids_BT, attention_mask_BT)
        return self._vectors(output, lambda states_BTD, pool: pool(states_BTD, pool_mask_BT))

    def embed(self, items: Sequence[TokenizedText]) -> Tensor:
        """Unit-norm float32 vectors (B, D) of texts in one forward pass, packed where possible."""
        if not self.is_packed:
            return self(*self._collate(items))
        return self._vectors(*self._run_packed(items))

    def pooled(self, items: Sequence[TokenizedText]) -> Tensor:
        """What `embed` projects and scales: float32 vectors (B, H) of the decoder's hidden size."""
        if not self.is_packed:
            ids_BT, mask_BT, pool_mask_BT = self._collate(items)
            output = self._run(ids_BT, mask_BT)
            return self._pooled(output, lambda states_BTD, pool: pool(states_BTD, pool_mask_BT))
        return self._pooled(*self._run_packed(items))

    @property
    def _needs_all_layers(self) -> bool:
        return isinstance(self.pooling, LayerPooling)

    def _run(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> BaseModelOutput:
        return self.backbone(
            input_ids=input_ids_BT,
            attention_mask=attention_mask_BT,
            use_cache=False,
            output_hidden_states=self._needs_all_layers,
        )

    def _run_packed(self, items: Sequence[TokenizedText]) -> tuple[BaseModelOutput, PoolTexts]:
        packed = pack(items, pool_prompt=self.pool_prompt, device=self.device)
        output = run_packed(self.backbone, packed, output_hidden_states=self._needs_all_layers)
        return output, packed.pool

    def _vectors(self, output: BaseModelOutput, pool: PoolTexts) -> Tensor:
        """Unit-norm float32 vectors (B, D)."""
        pooled_BH = self._pooled(output, pool)
        with torch.autocast(self.device.type, enabled=False):
            if self.projection is not None:
                pooled_BH = self.projection(pooled_BH)
            return F.normalize(pooled_BH, dim=-1)

    def _pooled(self, output: BaseModelOutput, pool: PoolTexts) -> Tensor:
        """Float32 vectors (B, H); `pool` applies a pooling to the states of a layer."""
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(self.pooling, LayerPooling):
                layers = output.hidden_states[1:]  # pyright: ignore[reportOptionalSubscript]  # asked for; the first is the input of block 0
                pooled = [pool(states.float(), self.pooling.pool_tokens) for states in layers]
                return self.pooling(torch.stack(pooled, dim=1))
            return pool(output.last_hidden_state.float(), self.pooling)  # pyright: ignore[reportOptionalMemberAccess]  # every decoder gives it

    def token_states(self, items: Sequence[TokenizedText]) -> list[Tensor]:
        """Last hidden states of each text, float32 (its tokens, D), as `embed` computes them."""
        if not self.is_packed:
            ids_BT, mask_BT, _ = self._collate(items)
            output = self.backbone(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
            states = list(output.last_hidden_state)
        else:
            packed = pack(items, pool_prompt=self.pool_prompt, device=self.device)
            blocks = packed.pad(run_packed(self.backbone, packed).last_hidden_state[0])  # pyright: ignore[reportOptionalSubscript]  # every decoder gives it
            longest_first = [states_LD for block_GLD in blocks for states_LD in block_GLD]
            states = [longest_first[place] for place in packed.order_B.tolist()]
        return [rows[: len(item.ids)].float() for rows, item in zip(states, items, strict=True)]

    def _collate(self, items: Sequence[TokenizedText]) -> tuple[Tensor, Tensor, Tensor]:
        return collate(items, pad_id=self.pad_id, pool_prompt=self.pool_prompt, device=self.device)

    @torch.inference_mode()
    def encode(
        self,
        texts: list[str],
        *,
        prompt: str = "",
        batch_tokens: int,
        max_length_tokens: int | None = None,
        precision: Precision = "fp32",
    ) -> np.ndarray:
        """Vectors of many texts, in their order.

        Args:
            texts: Any number of texts.
            prompt: Put in front of each text.
            batch_tokens: Tokens per forward pass, padding included where there is any.
            max_length_tokens: Cut there; None takes the model's own limit.
            precision: Autocast type of the decoder.

        Returns:
            float32 array of shape (N, D), unit norm.
        """
        was_training = self.training
        self.eval()
        items = self._tokenize_chunks(texts, prompt, max_length_tokens)
        embedding_ND = torch.empty((len(texts), self.embedding_size))
        held: list[tuple[list[int], Tensor]] = []

        def fetch() -> None:
            """Wait for the device; until then it always has the next batch to work on."""
            for batch, vectors in held:
                embedding_ND[batch] = vectors.cpu()
            held.clear()

        done = held_numbers = 0
        pace = Pace(len(texts), shows_last=False)
        lengths = [len(item.ids) for item in items]
        # one context for all: the weights are cast when it is first used
        with decoder_autocast(self.device, precision):
            for batch in token_budget_batches(lengths, batch_tokens, is_packed=self.is_packed):
                held.append((batch, self.embed([items[position] for position in batch])))
                held_numbers += len(batch) * self.embedding_size
                if held_numbers > HELD_NUMBERS:
                    fetch()
                    held_numbers = 0
                done += len(batch)
                if pace.is_due(done):
                    rate = pace.per_s(done)
                    logger.info("encoded %d/%d texts, %.0f texts/s", done, len(texts), rate)
            fetch()
        self.train(was_training)
        return embedding_ND.numpy()

    def _tokenize_chunks(
        self, texts: Sequence[str], prompt: str, max_length_tokens: int | None
    ) -> list[TokenizedText]:
        items: list[TokenizedText] = []
        for start in range(0, len(texts), TOKENIZE_CHUNK):
            chunk = list(texts[start : start + TOKENIZE_CHUNK])
            prompts = [prompt] * len(chunk)
            items += self.tokenize(chunk, prompts=prompts, max_length_tokens=max_length_tokens)
        return items

    def save(self, folder: Path, *, prompts: dict[str, str] | None = None) -> None:
        """Write a sentence-transformers folder that gives the same vectors.

        Raises:
            ValueError: Prompts stay out of pooling, and a token is in front of them or one may
                share a token with its text: sentence-transformers would pool other tokens.
        """
        prompts = self.prompts if prompts is None else prompts
        if not self.pool_prompt and not self.settings.ends_with_eos:
            check_no_bos(self.tokenizer)
            check_prompt_ends(self.tokenizer, prompts)
        save_parts(
            folder,
            backbone=self.backbone,
            tokenizer=self.tokenizer,
            pooling=self.pooling,
            projection=self.projection,
            settings=self.settings,
            max_length_tokens=self.max_length_tokens,
            prompts=prompts,
        )

    def save_proven(self, folder: Path, *, attn_implementation: str) -> "Encoder":
        """Write the folder, read it back and compare: what is saved gives the vectors of `self`.

        Args:
            folder: As for `save`.
            attn_implementation: The kernel that the next stage loads it with.

        Returns:
            The encoder that was read back, on the same device.

        Raises:
            ValueError: It cannot be read or gives other vectors, or some that are no numbers.
        """
        expected_ND = self.probe_vectors(attn_implementation)
        self.save(folder)
        loaded = Encoder.load(folder, device=self.device, attn_implementation=attn_implementation)
        change = np.abs(loaded.probe_vectors(attn_implementation) - expected_ND).max()
        limit = (
            MAX_CHANGE_BY_SAVING_BF16 if "flash" in attn_implementation else MAX_CHANGE_BY_SAVING
        )
        if not change <= limit:
            raise ValueError(
                f"{type(self.backbone).__name__} gives other vectors once it is saved and read "
                f"back (a number changes by {change:.3g}, expected at most {limit:g}): its config "
                "does not describe it, take another decoder or set prune.fraction to 0"
            )
        return loaded

    def probe_vectors(self, attn_implementation: str) -> np.ndarray:
        """Vectors of a few texts, to compare encoders by.

        Raises:
            ValueError: Some are no numbers.
        """
        # kernels of half precision alone cannot work otherwise
        precision = "bf16" if "flash" in attn_implementation else "fp32"
        embedding_ND = self.encode(list(PROBE_TEXTS), batch_tokens=1024, precision=precision)
        if not np.isfinite(embedding_ND).all():
            raise ValueError(
                f"{type(self.backbone).__name__} gives vectors that are no numbers: what made it "
                "diverged, lower its learning rate or start from whole weights"
            )
        return embedding_ND

    @classmethod
    def load(
        cls, folder: Path, *, device: torch.device | str = "cpu", attn_implementation: str = "sdpa"
    ) -> "Encoder":
        """Read a folder that `save` wrote, in the dtype it holds, in eval mode.

        Raises:
            ValueError: The folder is missing or is no such folder.
        """
        parts = load_parts(folder, attn_implementation=attn_implementation)
        encoder = cls(
            parts.backbone,
            parts.tokenizer,
            parts.settings,
            max_length_tokens=parts.max_length_tokens,
            prompts=parts.prompts,
        )
        encoder.pooling.load_state_dict(parts.pooling_state)
        if encoder.projection is not None:
            encoder.projection.load_state_dict(parts.projection_state)
        return encoder.to(device).eval()
