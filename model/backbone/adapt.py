"""Go on with the language modelling of a decoder from elsewhere, on other texts.

Causal, as it was trained; or masked next-token prediction of LLM2Vec (arXiv 2404.05961), by which a
decoder learns to use attention on two sides: a hidden token is predicted from the state before it.

Shape letters: V = tokens of the vocabulary, D = hidden size, B = 1 text, T = its tokens,
W = sequences of the corpus.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from model.backbone.scratch import (
    CurvePoint,
    LanguageModel,
    LanguageTraining,
    mean_loss,
    train_language_model,
)
from model.encoder.attention import set_attention

PROBE_TOKENS = 12
MASK = "_"
"""Stands for a hidden token where the tokenizer has none for that, as in LLM2Vec."""
ADVICE = "set backbone.adapt to null, or take another decoder"


@dataclass(frozen=True)
class Adaptation:
    """What a training did."""

    curve: list[CurvePoint]
    loss_before: float
    """Of texts that were held out, in nats."""
    loss_after: float


def read_head(source: str, *, revision: str | None) -> Tensor | None:
    """The table of the output of a decoder; None where it is that of the input.

    Args:
        source: As `load_decoder` takes it.
        revision: Commit, tag or branch of a hub id.

    Raises:
        ValueError: There is none, or the logits are something else than its products.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision or "main",
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )  # pyright: ignore[reportGeneralTypeIssues]  # a pair, with output_loading_info
    head_VD = model.get_output_embeddings().weight
    is_tied = head_VD is model.get_input_embeddings().weight
    if not is_tied and any(name.endswith("lm_head.weight") for name in info["missing_keys"]):
        raise ValueError(
            f"{source!r} has no language-model head, and its config does not tie one to the "
            f"embeddings: it cannot go on as a language model, {ADVICE}"
        )
    ids_BT = torch.arange(PROBE_TOKENS)[None] % len(head_VD)
    with torch.inference_mode():
        found = model.eval()(input_ids=ids_BT, use_cache=False, output_hidden_states=True)
        expected_BTV = found.hidden_states[-1] @ head_VD.T
    if not torch.allclose(found.logits, expected_BTV, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the logits of {type(model).__name__} are not its last states times a table (they are "
            f"scaled, capped or shifted), which is all that is known here: {ADVICE}"
        )
    return None if is_tied else head_VD.detach()


def mask_token_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that stands for a hidden one.

    Raises:
        ValueError: There is none.
    """
    token = tokenizer.mask_token or MASK
    if token not in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer has neither a mask token nor {MASK!r} as a token to hide others "
            "behind: set backbone.adapt.objective to causal"
        )
    return tokenizer.get_vocab()[token]


def adapt(
    model: LanguageModel,
    sequences_WT: np.ndarray,
    held_out_WT: np.ndarray,
    settings: LanguageTraining,
    *,
    checkpoints: Path,
    checkpoint_interval_s: float,
) -> Adaptation:
    """Train a decoder from elsewhere, in place; its attention is left as the objective needs it.

    Args:
        model: On its device.
        sequences_WT: To train on.
        held_out_WT: To measure the loss on, before and after.
        settings: The training.
        checkpoints: A killed run of equal weights, texts and settings is continued from here, if
            whoever names the folder puts the settings into its name.
        checkpoint_interval_s: Seconds between checkpoints.
    """
    kernel = model.decoder.config._attn_implementation or "eager"
    set_attention(model.decoder, "causal" if settings.masking is None else "bidirectional")
    folder = checkpoints / _digest(model, sequences_WT)
    before = mean_loss(model, held_out_WT, settings)
    curve = train_language_model(
        model,
        sequences_WT,
        settings,
        checkpoint_folder=folder,
        checkpoint_interval_s=checkpoint_interval_s,
    )
    after = mean_loss(model, held_out_WT, settings)
    model.decoder.set_attn_implementation(kernel)
    return Adaptation(curve, before, after)


def _digest(model: LanguageModel, sequences_WT: np.ndarray) -> str:
    """Hash of the weights that a training begins with, and of its texts."""
    digest = hashlib.sha256(sequences_WT.tobytes())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
