"""A decoder from nothing: a byte-level BPE tokenizer and a small Qwen3-type causal language model.

Its training also goes on with decoders from elsewhere (model/backbone/adapt.py).

Shape letters: B = sequences, T = tokens of a sequence, M = predicted tokens, D = hidden size,
V = vocabulary, W = sequences of the corpus.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from model.checkpoint import load_latest, optimizer_tensors, restore_optimizer, save_checkpoint
from model.encoder.compilation import compile_blocks
from model.encoder.pace import Pace
from model.encoder.precision import Precision, decoder_autocast
from model.training.decay import decay_groups
from model.training.schedule import learning_rate_at

PAD, EOS = "<pad>", "<eos>"
LOSS_CHUNKS = {"cpu": 512, "cuda": 16384}
"""Tokens whose logits exist at once: few stay in a processor's cache, a GPU wants few kernels."""
DOCUMENTS_PER_CALL = 1000
CLIP_NORM = 1.0
BETAS = (0.9, 0.95)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DecoderSize:
    """Sizes of the decoder; the vocabulary's comes from the tokenizer."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int


class Masking(NamedTuple):
    """Masked next-token prediction (LLM2Vec): a hidden token, from the state before it."""

    share: float
    """Share of the tokens of a sequence that are hidden, its first aside; at least one is."""
    token: int
    """Stands in their place."""


@dataclass(frozen=True, kw_only=True)
class LanguageTraining:
    """One training of a language model."""

    max_steps: int
    batch_tokens: int
    """Tokens per optimiser step; rounded down to whole sequences, at least one."""
    sequence_tokens: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    precision: Precision
    compile_blocks: bool = False
    masking: Masking | None = None
    """How tokens are hidden; None predicts every next token."""
    seed: int


class CurvePoint(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    """Mean cross-entropy in nats."""
    learning_rate: float


class LanguageModel(nn.Module):
    """A decoder, and a table of its output where it is not the one of its input."""

    def __init__(self, decoder: PreTrainedModel, head_VD: Tensor | None) -> None:
        """Put them together.

        Args:
            decoder: Without language-model head.
            head_VD: A row per token; None where the embeddings serve the output too.
        """
        super().__init__()
        self.decoder = decoder
        self.head = None if head_VD is None else nn.Parameter(head_VD)

    def set_head(self, changed: Callable[[Tensor], Tensor]) -> None:
        """Change the table of the output, where there is one."""
        if self.head is not None:
            self.head = nn.Parameter(changed(self.head.detach()))

    @property
    def rows(self) -> Tensor:
        """What a state is multiplied with for the logits, shape [V, D]."""
        return self.decoder.get_input_embeddings().weight if self.head is None else self.head  # pyright: ignore[reportReturnType]  # a matrix


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over NFC text: every string has tokens and comes back from them.

    Args:
        texts: Training corpus.
        vocab_size: Upper bound, special tokens included; a small corpus gives fewer.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]  # properties with setters
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)


def pack_documents(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    sequence_tokens: int,
    *,
    max_tokens: int,
) -> np.ndarray:
    """Sequences of equal length, cut from documents laid end to end with EOS between.

    Each begins with the BOS token where the tokenizer begins texts with it.

    Args:
        tokenizer: Its EOS token separates the documents.
        texts: Taken in this order until there are enough tokens.
        sequence_tokens: Length of a sequence, T.
        max_tokens: No more documents are read once their tokens reach this number.

    Returns:
        int32 array of shape (W, T); the tail that fills no sequence is dropped.

    Raises:
        ValueError: The documents do not fill one sequence, or there is no EOS token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no EOS token, which divides documents")
    bos = [id_ for id_ in tokenizer("").input_ids[:1] if id_ == tokenizer.bos_token_id]
    length = sequence_tokens - len(bos)
    parts = [np.empty(0, dtype=np.int32)]
    held = 0
    for start in range(0, len(texts), DOCUMENTS_PER_CALL):
        if held >= max_tokens:
            break
        chunk = list(texts[start : start + DOCUMENTS_PER_CALL])
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        parts += [np.array([*encoding.ids, eos], dtype=np.int32) for encoding in encodings]
        held += sum(len(part) for part in parts[-len(chunk) :])
    tokens = np.concatenate(parts)
    count = len(tokens) // length
    if count == 0:
        raise ValueError(
            f"the documents hold {len(tokens)} tokens, one sequence needs {sequence_tokens}: "
            "give more documents or lower the sequence_tokens of backbone"
        )
    tokens_WT = tokens[: count * length].reshape(count, length)
    return np.hstack([np.tile(np.array(bos, dtype=np.int32), (count, 1)), tokens_WT])


def new_decoder(size: DecoderSize, vocab_size: int, seed: int) -> Qwen3ForCausalLM:
    """Untrained Qwen3-type language model, embeddings tied; the same weights for the same seed."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_key_value_heads,
        head_dim=size.head_dim,
        tie_word_embeddings=True,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def train_decoder(
    decoder: Qwen3ForCausalLM,
    sequences_WT: np.ndarray,
    settings: LanguageTraining,
    *,
    checkpoint_folder: Path,
    checkpoint_interval_s: float,
) -> tuple[PreTrainedModel, list[CurvePoint]]:
    """Train a new decoder on next-token prediction; return it without its head, and the curve.

    The arguments are those of `train_language_model`.
    """
    curve = train_language_model(
        LanguageModel(decoder.model, None),
        sequences_WT,
        settings,
        checkpoint_folder=checkpoint_folder,
        checkpoint_interval_s=checkpoint_interval_s,
    )
    return decoder.model, curve


def train_language_model(
    model: LanguageModel,
    sequences_WT: np.ndarray,
    settings: LanguageTraining,
    *,
    checkpoint_folder: Path,
    checkpoint_interval_s: float,
) -> list[CurvePoint]:
    """Train a language model; return the curve.

    AdamW, warm-up and cosine decay to zero, gradients clipped to norm 1. A run that
    was killed continues from the last checkpoint and ends with the same bits as an unbroken one.

    Args:
        model: Trained in place, on its device.
        sequences_WT: From `pack_documents`.
        settings: The training.
        checkpoint_folder: Belongs to this run alone; a checkpoint found there is continued.
        checkpoint_interval_s: Seconds between checkpoints; they change nothing but the time lost.
    """
    run = _Run(model, sequences_WT, settings)
    run.resume(checkpoint_folder)
    first, saved = run.steps_done, time.monotonic()
    pace = Pace(settings.max_steps, done=first)
    for step in range(first + 1, settings.max_steps + 1):
        run.take_step(step)
        now = time.monotonic()
        if pace.is_due(step):
            run.log_progress(pace)
        if now - saved >= checkpoint_interval_s:
            saved = now
            run.save(checkpoint_folder)
    return run.curve()


@torch.no_grad()
def mean_loss(model: LanguageModel, sequences_WT: np.ndarray, settings: LanguageTraining) -> float:
    """Loss of sequences that are not trained on, in nats: the same tokens hidden each time."""
    model.eval()
    device = _prepared(model.decoder)
    rows = max(1, settings.batch_tokens // sequences_WT.shape[1])
    total = 0.0
    for first in range(0, len(sequences_WT), rows):
        ids_BT = torch.from_numpy(sequences_WT[first : first + rows].astype(np.int64)).to(device)
        inputs_BT, asked_M = _posed(ids_BT, settings.masking, [settings.seed, first, 2])
        loss = _loss(model, ids_BT, inputs_BT, asked_M, settings.precision)
        total += loss.item() * len(ids_BT)
    return total / len(sequences_WT)


def _prepared(decoder: PreTrainedModel) -> torch.device:
    """Set the kernel of attention that trains fastest where the decoder is; return its device."""
    device = decoder.device
    # sdpa's backward in bf16 costs twice the plain products on a CPU at these sizes
    is_plain = device.type == "cpu" or not decoder._supports_sdpa
    decoder.set_attn_implementation("eager" if is_plain else "sdpa")
    return device


class _Run:
    """State of one training: the model, its optimizer and the curve so far."""

    def __init__(
        self, model: LanguageModel, sequences_WT: np.ndarray, settings: LanguageTraining
    ) -> None:
        self.model = model.eval()  # dropout would take its numbers from where no checkpoint looks
        self.sequences_WT = sequences_WT
        self.settings = settings
        self._curve: list[CurvePoint] = []
        self._losses: list[tuple[Tensor, float]] = []
        self.device = _prepared(model.decoder)
        if settings.compile_blocks:
            compile_blocks(model.decoder)
        groups = decay_groups(model.parameters(), settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)

    def take_step(self, step: int) -> None:
        """One optimiser step, counted from 1."""
        learning_rate = learning_rate_at(
            step,
            peak=self.settings.learning_rate,
            min_share=0.0,
            warmup_steps=self.settings.warmup_steps,
            max_steps=self.settings.max_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        ids_BT = self._batch(step)
        inputs_BT, asked_M = _posed(ids_BT, self.settings.masking, [self.settings.seed, step, 1])
        loss = _loss(self.model, ids_BT, inputs_BT, asked_M, self.settings.precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._losses.append((loss.detach(), learning_rate))

    @property
    def steps_done(self) -> int:
        """Steps of this run and of the one that it continues."""
        return len(self._curve) + len(self._losses)

    def curve(self) -> list[CurvePoint]:
        """All steps so far; until then losses wait on the device, and no step waits for them."""
        for loss, learning_rate in self._losses:
            self._curve.append(CurvePoint(len(self._curve) + 1, loss.item(), learning_rate))
        self._losses.clear()
        return self._curve

    def _batch(self, step: int) -> Tensor:
        """Sequences of one step: each pass over the corpus has its own order, none is left out."""
        count, length = self.sequences_WT.shape
        rows = max(1, self.settings.batch_tokens // length)
        first = (step - 1) * rows
        orders = {
            epoch: np.random.default_rng([self.settings.seed, epoch]).permutation(count)
            for epoch in range(first // count, (first + rows - 1) // count + 1)
        }
        chosen = [orders[place // count][place % count] for place in range(first, first + rows)]
        return torch.from_numpy(self.sequences_WT[chosen].astype(np.int64)).to(self.device)

    def log_progress(self, pace: Pace) -> None:
        """Write one line with the state of the run."""
        step, loss, _ = self.curve()[-1]
        logger.info(
            "step %d/%d loss %.2f nats, %.0f tokens/s, %.0f s left",
            step,
            self.settings.max_steps,
            loss,
            self.settings.batch_tokens / pace.seconds_each,
            pace.seconds_left,
        )

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the steps done."""
        weights = {f"weight.{name}": value for name, value in self.model.state_dict().items()}
        tensors = weights | optimizer_tensors(self.optimizer)
        curve = self.curve()
        save_checkpoint(folder, step=len(curve), tensors=tensors, state={"curve": curve})

    def resume(self, folder: Path) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = load_latest(folder)
        if checkpoint is None:
            return
        prefix = "weight."
        tensors = checkpoint.tensors()
        weights = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        self.model.load_state_dict(weights)
        restore_optimizer(self.optimizer, tensors)
        self._curve = [CurvePoint(*point) for point in checkpoint.state["curve"]]
        logger.info("continuing after step %d of an interrupted run", checkpoint.step)


def _posed(
    ids_BT: Tensor, masking: Masking | None, seed: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """What the decoder reads, and the places to predict after the first of each sequence.

    Returns:
        The sequences, without the tokens that are hidden; and where those stood among the tokens of
        all sequences but their first ones, None for all.
    """
    if masking is None:
        return ids_BT, None
    count, length = ids_BT.shape[0], ids_BT.shape[1] - 1
    hidden = max(1, round(masking.share * length))
    order = np.random.default_rng(seed).random((count, length)).argsort(axis=1)
    places = np.sort(order[:, :hidden], axis=1) + length * np.arange(count)[:, None]
    asked_M = torch.from_numpy(places.flatten()).to(ids_BT.device)
    inputs_BT = ids_BT.clone()
    inputs_BT[asked_M // length, asked_M % length + 1] = masking.token
    return inputs_BT, asked_M


def _loss(
    model: LanguageModel,
    ids_BT: Tensor,
    inputs_BT: Tensor,
    asked_M: Tensor | None,
    precision: Precision,
) -> Tensor:
    """Mean cross-entropy of the tokens that are asked for, in nats, each from the state before it.

    Of all next tokens it is equal to the model's own loss.
    """
    weight_VD = model.rows
    chunk_tokens = LOSS_CHUNKS[ids_BT.device.type]
    with decoder_autocast(ids_BT.device, precision):
        states_BTD = model.decoder(input_ids=inputs_BT, use_cache=False).last_hidden_state
        states_MD, target_M = states_BTD[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
        if asked_M is not None:
            states_MD, target_M = states_MD[asked_M], target_M[asked_M]
        losses = [
            F.cross_entropy((chunk_MD @ weight_VD.T).float(), chunk_M, reduction="sum")
            for chunk_MD, chunk_M in zip(
                states_MD.split(chunk_tokens), target_M.split(chunk_tokens), strict=True
            )
        ]
    return torch.stack(losses).sum() / target_M.numel()
