"""The model folder: read by Encoder and by sentence-transformers alike.

`samovar.json` holds what sentence-transformers has no place for. Its stock modules do the pooling
but for `latent`: the file `latent_pooling.py` lies in the folder, and since 6.0 it runs such a
file, in a local folder too, only when its caller allows that with `trust_remote_code`.
`Encoder.load` never runs code of a folder.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from model.pooling import latent as latent_file
from model.pooling.build import PoolingSettings
from model.pooling.latent import LatentPooling, SentenceLatentPooling, save_block
from model.writing import writing

SETTINGS_FILE = "samovar.json"
FORMAT = 1
LATENT_FILE = "latent_pooling.py"
LATENT_FOLDER = "1_LatentPooling"
MODULES = "sentence_transformers"
STOCK_POOLING = {"mean": "mean", "weighted_mean": "weightedmean", "last": "lasttoken"}


@dataclass(frozen=True, kw_only=True)
class EncoderParts:
    """What a model folder holds."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    settings: PoolingSettings
    pooling_state: dict[str, Tensor]
    max_length_tokens: int
    prompts: dict[str, str]


def save_parts(  # noqa: PLR0913 - one argument per part of the folder
    folder: Path,
    *,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pooling: nn.Module,
    settings: PoolingSettings,
    max_length_tokens: int,
    prompts: dict[str, str],
) -> None:
    """Write the folder; equal parts give equal bytes.

    Raises:
        OSError: The disk is full; the message names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    backbone.config.use_cache = False
    with writing(folder / "model.safetensors"):
        backbone.save_pretrained(folder, max_shard_size="1TB")
    _save_tokenizer(folder, tokenizer, max_length_tokens)
    is_causal = getattr(backbone.config, "is_causal", True)
    content = {
        "format": FORMAT,
        "attention": "causal" if is_causal else "bidirectional",
        "max_length_tokens": max_length_tokens,
        "pooling": settings.to_json(),
    }
    _write(folder / SETTINGS_FILE, content)
    _write(folder / "sentence_bert_config.json", _transformer_config())
    _write(folder / "config_sentence_transformers.json", _model_config(prompts))
    pooling_type, pooling_path = _save_pooling(
        folder, pooling, settings, backbone.config.hidden_size
    )
    _write(folder / "2_Normalize" / "config.json", {})
    types = [
        (f"{MODULES}.base.modules.transformer.Transformer", ""),
        (pooling_type, pooling_path),
        (f"{MODULES}.base.modules.normalize.Normalize", "2_Normalize"),
    ]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": name}
        for index, (name, path) in enumerate(types)
    ]
    _write(folder / "modules.json", modules)


def _save_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerFast, max_length_tokens: int
) -> None:
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.model_max_length = max_length_tokens
    with writing(folder / "tokenizer.json"):
        tokenizer.save_pretrained(folder)


def _transformer_config() -> dict[str, Any]:
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
        "module_output_name": "token_embeddings",
    }


def _model_config(prompts: dict[str, str]) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }


def _save_pooling(
    folder: Path, pooling: nn.Module, settings: PoolingSettings, hidden_size: int
) -> tuple[str, str]:
    """Write the pooling module; return its class reference and its subfolder."""
    if not isinstance(pooling, LatentPooling):
        content = {
            "embedding_dimension": hidden_size,
            "pooling_mode": STOCK_POOLING[settings.kind],
            "include_prompt": settings.pool_prompt,
        }
        _write(folder / "1_Pooling" / "config.json", content)
        return f"{MODULES}.sentence_transformer.modules.pooling.Pooling", "1_Pooling"
    with writing(folder / LATENT_FILE):
        (folder / LATENT_FILE).write_text(inspect.getsource(latent_file), encoding="utf-8")
    with writing(folder / LATENT_FOLDER / "model.safetensors"):
        save_block(pooling, folder / LATENT_FOLDER, include_prompt=settings.pool_prompt)
    return f"{Path(LATENT_FILE).stem}.{SentenceLatentPooling.__name__}", LATENT_FOLDER


def load_parts(folder: Path, *, attn_implementation: str) -> EncoderParts:
    """Read a folder that `save_parts` wrote.

    Raises:
        ValueError: The folder is missing, is no such folder, has another format, or its weights
            are damaged.
    """
    content = _read(folder / SETTINGS_FILE)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {content.get('format')!r}, expected {FORMAT}: write it again"
        )
    transformers_logging.disable_progress_bar()
    settings = PoolingSettings.from_json(content["pooling"])
    latent_weights = folder / LATENT_FOLDER / "model.safetensors"
    try:
        backbone = AutoModel.from_pretrained(
            folder, dtype="auto", attn_implementation=attn_implementation, local_files_only=True
        )
        pooling_state = load_file(latent_weights) if settings.kind == "latent" else {}
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {folder} are damaged or cut off ({error}): run its stage again, or "
            "fetch it again (dvc pull)"
        ) from error
    return EncoderParts(
        backbone=backbone,
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
        settings=settings,
        pooling_state=pooling_state,
        max_length_tokens=content["max_length_tokens"],
        prompts=_read(folder / "config_sentence_transformers.json")["prompts"],
    )


def _write(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
    with writing(path):
        path.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is no model folder of Samovar: {path.name} is missing; "
            "run the stage backbone on it first (backbone.source)"
        ) from None
