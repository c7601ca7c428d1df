"""A decoder from elsewhere: read, and believed only after it was asked what it is.

transformers loads nearly any folder without an error: an adapter without its base, weights under
other names as random numbers, a tokenizer without its files. So each is asked for by name.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from model.encoder.blocks import named_blocks
from model.encoder.weights import check_vocabulary, check_weights, read_weights

LEAST_VOCABULARY = 0.5
"""Least share of the embedding matrix that the tokenizer of these weights knows: matrices are
padded by some per cent, a tokenizer without its files knows its special tokens alone."""
SENTENCEPIECE_PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""Packages that read `tokenizer.model`, by the module each is imported as."""


def load_decoder(
    source: str, *, revision: str | None, attn_implementation: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Decoder without language-model head, in float32, and its tokenizer.

    Of a model that also reads images or sound, the text part.

    Args:
        source: A folder, or an id of the Hugging Face hub; the environment's HF_HUB_OFFLINE,
            HF_HOME and HF_TOKEN are respected.
        revision: Commit, tag or branch of a hub id; None takes the newest.
        attn_implementation: As in transformers: eager, sdpa, flash_attention_2.

    Raises:
        ValueError: The source cannot be reached, does not exist, is no whole decoder with its
            tokenizer, or needs a package that is not installed; the message says what to do.
    """
    transformers_logging.disable_progress_bar()
    if not Path(source).is_dir() and source.startswith((".", "/", "~")):
        raise ValueError(f"backbone.source {source!r}: there is no such folder")
    version = revision or "main"
    with _explained(source, revision, attn_implementation):
        adapter = find_adapter_config_file(source, revision=version)
    _refuse_adapter(source, adapter)
    with _explained(source, revision, attn_implementation):
        config = AutoConfig.from_pretrained(source, revision=version, trust_remote_code=False)
    _refuse_kind(source, config)
    with _explained(source, revision, attn_implementation):
        model, info = read_weights(
            source,
            revision=version,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            # a pickle or a Python file beside the weights could run anything
            use_safetensors=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=version, trust_remote_code=False)
    try:
        check_weights(
            model,
            info,
            "save it from its own class, without wrappers such as torch.compile or an adapter, or "
            "correct its config.json",
        )
    except ValueError as error:
        raise ValueError(f"{source!r} is not a whole decoder: {error}") from error
    decoder = _text_part(source, model)
    named_blocks(decoder)
    _check_numbers(source, decoder)
    _check_tokenizer(source, decoder, tokenizer)
    return decoder, tokenizer


@contextmanager
def _explained(source: str, revision: str | None, kernel: str) -> Iterator[None]:
    """Turn what transformers raises into a ValueError that says what to do.

    It raises errors of any class: configs are checked by dataclasses of the hub's package.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(_explain(source, revision, kernel, error)) from error


def _explain(source: str, revision: str | None, kernel: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n", maxsplit=1)[0]
    if isinstance(error, SafetensorError):
        return f"the weights of {source!r} are damaged or cut off ({first_line}): fetch them again"
    if "sentencepiece" in str(error).lower() or "tiktoken" in str(error):
        return _explain_sentencepiece(source)
    if "attn_implementation" in str(error) or "flash" in first_line.lower():
        return (
            f"{source!r} cannot be loaded with backbone.attn_implementation: {kernel} "
            f"({first_line.split('. ')[0]}): set another, eager works for every decoder"
        )
    if isinstance(error, ImportError):
        return f"{source!r} needs a package that is not installed here: {first_line}"
    if Path(source).is_dir():
        return f"the folder {source!r} holds no decoder and fast tokenizer to load: {first_line}"
    return (
        f"the hub model {source!r} (revision {revision or 'main'}) cannot be loaded: {first_line}. "
        "Check the id, the revision and the connection; a gated model needs HF_TOKEN; with "
        "HF_HUB_OFFLINE=1 it must be in the cache (hf download); or set backbone.source to a folder"
    )


def _explain_sentencepiece(source: str) -> str:
    absent = [name for module, name in SENTENCEPIECE_PACKAGES.items() if not _is_installed(module)]
    reason = f"{' and '.join(absent)} missing here" if absent else "and it cannot be read"
    return (
        f"{source!r} has its tokenizer as a sentencepiece file (tokenizer.model) alone, {reason}: "
        "load it with AutoTokenizer where sentencepiece and protobuf are installed, and put the "
        "tokenizer.json that save_pretrained writes beside the weights"
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _refuse_adapter(source: str, adapter: str | None) -> None:
    if adapter is None:
        return
    content = json.loads(Path(adapter).read_text(encoding="utf-8"))
    raise ValueError(
        f"{source!r} holds an adapter (adapter_config.json) of "
        f"{content.get('base_model_name_or_path')!r}: merge it into its base with peft "
        "(merge_and_unload, then save_pretrained) and give that folder; if the weights are merged "
        "already, remove adapter_config.json"
    )


def _refuse_kind(source: str, config: PreTrainedConfig) -> None:
    parts = (config, config.get_text_config(decoder=True))
    found = [value for part in parts if (value := getattr(part, "quantization_config", None))]
    if found:
        method = found[0].get("quant_method") if isinstance(found[0], dict) else found[0]
        raise ValueError(
            f"{source!r} is quantised ({method}) and cannot be trained: give the full weights it "
            "was made from"
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"{source!r} ({config.model_type}) is an encoder with a decoder: give a decoder-only "
            "model"
        )


def _text_part(source: str, model: PreTrainedModel) -> PreTrainedModel:
    """The decoder itself, out of a model whose config holds one config per kind of input."""
    if model.config.get_text_config(decoder=True) is model.config:
        return model
    decoder = model.get_decoder()
    if MODEL_MAPPING.get(type(getattr(decoder, "config", None)), None) is not type(decoder):  # pyright: ignore[reportArgumentType]  # any class may be asked for
        raise ValueError(
            f"{source!r} ({model.config.model_type}) is a model of several kinds of input whose "
            f"text part ({type(decoder).__name__}) cannot stand alone in transformers: give a "
            "model of text alone"
        )
    return decoder


def _check_numbers(source: str, decoder: PreTrainedModel) -> None:
    names = [name for name, weight in decoder.named_parameters() if not weight.isfinite().all()]
    if names:
        raise ValueError(
            f"{len(names)} tensors of {source!r} hold numbers that are not finite, {names[0]} the "
            "first: fetch the weights again, or take a checkpoint from before they diverged"
        )


def _check_tokenizer(
    source: str, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = decoder.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]  # a matrix
    if len(tokenizer) < LEAST_VOCABULARY * rows:
        raise ValueError(
            f"the tokenizer of {source!r} knows {len(tokenizer)} tokens where the embedding matrix "
            f"has {rows} rows: its tokenizer.json is missing or of another model, put that of "
            "these weights beside them"
        )
    check_vocabulary(decoder, tokenizer, source)
