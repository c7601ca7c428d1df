"""A decoder from nothing: a byte-level BPE tokenizer and a small Qwen3-type causal language model.

Shape letters: B = sequences, T = tokens of a sequence, M = predicted tokens, D = hidden size,
V = vocabulary, W = sequences of the corpus.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
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


@dataclass(frozen=True, kw_only=True)
class CausalTraining:
    """One causal language-model training."""

    max_steps: int
    batch_tokens: int
    """Tokens per optimiser step; rounded down to whole sequences, at least one."""
    sequence_tokens: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    precision: Precision
    compile_blocks: bool = False
    seed: int


class CurvePoint(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    """Mean cross-entropy in nats."""
    learning_rate: float


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

    Args:
        tokenizer: Its EOS token separates the documents.
        texts: Taken in this order until there are enough tokens.
        sequence_tokens: Length of a sequence, T.
        max_tokens: No more documents are read once their tokens reach this number.

    Returns:
        int32 array of shape (W, T); the tail that fills no sequence is dropped.

    Raises:
        ValueError: The documents do not fill one sequence.
    """
    eos = tokenizer.convert_tokens_to_ids(EOS)
    parts = [np.empty(0, dtype=np.int32)]
    held = 0
    for start in range(0, len(texts), DOCUMENTS_PER_CALL):
        if held >= max_tokens:
            break
        chunk = list(texts[start : start + DOCUMENTS_PER_CALL])
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(chunk)
        parts += [np.array([*encoding.ids, eos], dtype=np.int32) for encoding in encodings]
        held += sum(len(part) for part in parts[-len(chunk) :])
    tokens = np.concatenate(parts)
    count = len(tokens) // sequence_tokens
    if count == 0:
        raise ValueError(
            f"the documents hold {len(tokens)} tokens, one sequence needs {sequence_tokens}: "
            "give more documents or lower backbone.scratch.sequence_tokens"
        )
    return tokens[: count * sequence_tokens].reshape(count, sequence_tokens)


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
    settings: CausalTraining,
    *,
    checkpoint_folder: Path,
    checkpoint_interval_s: float,
) -> tuple[PreTrainedModel, list[CurvePoint]]:
    """Train on next-token prediction; return the decoder without its head, and the curve.

    AdamW, warm-up and cosine decay to zero, gradients clipped to norm 1. A run that
    was killed continues from the last checkpoint and ends with the same bits as an unbroken one.

    Args:
        decoder: Trained in place, on its device.
        sequences_WT: From `pack_documents`.
        settings: The training.
        checkpoint_folder: Belongs to this run alone; a checkpoint found there is continued.
        checkpoint_interval_s: Seconds between checkpoints; they change nothing but the time lost.
    """
    run = _Run(decoder, sequences_WT, settings)
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
    return decoder.model, run.curve()


class _Run:
    """State of one training: the model, its optimizer and the curve so far."""

    def __init__(
        self, decoder: Qwen3ForCausalLM, sequences_WT: np.ndarray, settings: CausalTraining
    ) -> None:
        self.decoder = decoder.train()
        self.sequences_WT = sequences_WT
        self.settings = settings
        self._curve: list[CurvePoint] = []
        self._losses: list[tuple[Tensor, float]] = []
        self.device = next(decoder.parameters()).device
        # sdpa's backward in bf16 costs twice the plain products on a CPU at these sizes
        decoder.model.set_attn_implementation("eager" if self.device.type == "cpu" else "sdpa")
        if settings.compile_blocks:
            compile_blocks(decoder.model)
        groups = decay_groups(decoder.parameters(), settings.weight_decay)
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
        loss = _causal_loss(self.decoder, self._batch(step), self.settings.precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), CLIP_NORM)
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
        weights = {
            f"weight.{name}": value for name, value in self.decoder.model.state_dict().items()
        }
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
        self.decoder.model.load_state_dict(weights)
        restore_optimizer(self.optimizer, tensors)
        self._curve = [CurvePoint(*point) for point in checkpoint.state["curve"]]
        logger.info("continuing after step %d of an interrupted run", checkpoint.step)


def _causal_loss(decoder: Qwen3ForCausalLM, ids_BT: Tensor, precision: Precision) -> Tensor:
    """Mean cross-entropy of every next token, in nats; equal to the model's own loss."""
    weight_VD = decoder.model.embed_tokens.weight
    chunk_tokens = LOSS_CHUNKS[ids_BT.device.type]
    with decoder_autocast(ids_BT.device, precision):
        states_BTD = decoder.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        states_MD, target_M = states_BTD[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
        losses = [
            F.cross_entropy((chunk_MD @ weight_VD.T).float(), chunk_M, reduction="sum")
            for chunk_MD, chunk_M in zip(
                states_MD.split(chunk_tokens), target_M.split(chunk_tokens), strict=True
            )
        ]
    return torch.stack(losses).sum() / target_M.numel()
