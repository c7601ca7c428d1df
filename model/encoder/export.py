"""The model folder: read by Encoder and by sentence-transformers alike.

Names and keys of the stock modules are those that sentence-transformers 5.2 and 6 both know.
`samovar.json` holds what sentence-transformers has no place for. Its stock modules do the pooling
but for kinds with weights: their files lie in the folder, and since 6.0 it runs such files, in a
local folder too, only when its caller allows that with `trust_remote_code`. `Encoder.load` never
runs code of a folder.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging as transformers_logging

from model.encoder.attention import is_causal
from model.encoder.pooling.build import PoolingSettings, kind_of
from model.encoder.pooling.pooling_block import PoolingBlock, PublishedBlock, save_block
from model.encoder.token_record import token_record
from model.encoder.weights import check_vocabulary, check_weights, read_weights
from model.writing import writing

SETTINGS_FILE = "samovar.json"
WEIGHTS_FILE = "model.safetensors"
MODULES_FILE = "modules.json"
FORMAT = 3
"""Raised when a reader of the format before would fail or give other vectors."""
TOKENS_FILE = "tokenizer_check.json"
"""Ids of fixed texts, as they were when the model was saved."""
PROJECTION_FOLDER = "2_Dense"
PROJECTION_PREFIX = "linear."
"""In front of the names of its weights, as the module Dense of sentence-transformers has it."""
MODULES = "sentence_transformers.models"
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Pooling modes by the switch that stood for each before `pooling_mode`."""
REQUIREMENTS = {"sentence-transformers": ">=5.2", "transformers": ">=5.6"}
"""What reads the folder rightly. An older transformers knows no `is_causal` and runs a
bidirectional model causal without a word."""
PLAIN_TOKENIZER = "glm"
"""A type whose tokenizer transformers reads from tokenizer.json as it is, as `load_parts` does; for
the type qwen2 it would build another one, whatever tokenizer_config.json names."""
NEWER_ARGUMENT = {"fusion_config": None}
"""An argument of from_pretrained, off, that a transformers older than required does not have: there
it is a TypeError, also where sentence-transformers is too old to read the requirements."""


@dataclass(frozen=True, kw_only=True)
class EncoderParts:
    """What a model folder holds."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    settings: PoolingSettings
    pooling_state: dict[str, Tensor]
    projection_state: dict[str, Tensor]
    max_length_tokens: int
    prompts: dict[str, str]


def save_parts(  # noqa: PLR0913 - one argument per part of the folder
    folder: Path,
    *,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pooling: nn.Module,
    projection: nn.Linear | None,
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
    backbone.config.output_hidden_states = kind_of(settings.kind).reads_all_layers
    with writing(folder / WEIGHTS_FILE):
        backbone.save_pretrained(folder, max_shard_size="1TB")
    _save_tokenizer(folder, tokenizer, max_length_tokens)
    content = {
        "format": FORMAT,
        "attention": "causal" if is_causal(backbone.config) else "bidirectional",
        "max_length_tokens": max_length_tokens,
        "pooling": settings.to_json(),
    }
    _write(folder / SETTINGS_FILE, content)
    _write(folder / "sentence_bert_config.json", _transformer_config(max_length_tokens))
    _write(folder / "config_sentence_transformers.json", _model_config(prompts))
    types = [
        (f"{MODULES}.Transformer", ""),
        _save_pooling(folder, pooling, settings, backbone.config.hidden_size),
    ]
    if projection is not None:
        types.append(_save_projection(folder, projection))
    normalize_folder = f"{len(types)}_Normalize"
    types.append((f"{MODULES}.Normalize", normalize_folder))
    _write(folder / normalize_folder / "config.json", {})
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": name}
        for index, (name, path) in enumerate(types)
    ]
    _write(folder / MODULES_FILE, modules)


def _save_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerFast, max_length_tokens: int
) -> None:
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.model_max_length = max_length_tokens
    with writing(folder / "tokenizer.json"):
        tokenizer.save_pretrained(folder)
    # last: it cuts the long text, and tokenizer.json is written uncut
    _write(folder / TOKENS_FILE, token_record(tokenizer, max_length_tokens), indent=None)


def _transformer_config(max_length_tokens: int) -> dict[str, Any]:
    return {
        "max_seq_length": max_length_tokens,
        "do_lower_case": False,
        "model_args": NEWER_ARGUMENT,
        "tokenizer_args": {"tokenizer_type": PLAIN_TOKENIZER},
    }


def _model_config(prompts: dict[str, str]) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": REQUIREMENTS,
    }


def _save_pooling(
    folder: Path, pooling: nn.Module, settings: PoolingSettings, hidden_size: int
) -> tuple[str, str]:
    """Write the pooling module; return its class reference and its subfolder."""
    kind = kind_of(settings.kind)
    own_folder = folder / kind.folder
    if kind.published is not None:
        assert isinstance(pooling, PoolingBlock)  # noqa: S101 - as every published kind is
        with writing(own_folder / WEIGHTS_FILE):
            save_block(pooling, own_folder, include_prompt=settings.pool_prompt)
        return _copy_files(folder, kind.published), kind.folder
    content = {
        # 6 reads it as embedding_dimension, which 5.2 does not know
        "word_embedding_dimension": hidden_size,
        "pooling_mode": kind.stock_mode,
        **{switch: name == kind.stock_mode for switch, name in POOLING_SWITCHES.items()},
        "include_prompt": settings.pool_prompt,
    }
    _write(own_folder / "config.json", content)
    return f"{MODULES}.Pooling", kind.folder


def _save_projection(folder: Path, projection: nn.Linear) -> tuple[str, str]:
    """Write the projection; return its class reference and its subfolder."""
    content = {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / PROJECTION_FOLDER / "config.json", content)
    state = {f"{PROJECTION_PREFIX}{name}": value for name, value in projection.state_dict().items()}
    with writing(folder / PROJECTION_FOLDER / WEIGHTS_FILE):
        save_file(state, folder / PROJECTION_FOLDER / WEIGHTS_FILE)
    return f"{MODULES}.Dense", PROJECTION_FOLDER


def _copy_files(folder: Path, published: type[PublishedBlock]) -> str:
    """Put the file of a pooling, and what it imports, into the folder; the reference of its class.

    sentence-transformers looks for the imported ones as `get_relative_import_files` does.
    """
    source = Path(inspect.getfile(published))
    name = f"{source.stem}_pooling"
    copies = {f"{name}.py": source}
    copies |= {Path(path).name: Path(path) for path in get_relative_import_files(source)}
    for target, path in copies.items():
        with writing(folder / target):
            (folder / target).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return f"{name}.{published.__name__}"


def load_parts(folder: Path, *, attn_implementation: str) -> EncoderParts:
    """Read a folder that `save_parts` wrote.

    Raises:
        ValueError: The folder is missing, is no such folder, has another format, or its weights
            are damaged or not those of its config.
    """
    content = _read(folder / SETTINGS_FILE)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {content.get('format')!r}, expected {FORMAT}: run the stage that "
            "wrote it again"
        )
    _check_modules(folder)
    transformers_logging.disable_progress_bar()
    settings = PoolingSettings.from_json(content["pooling"])
    try:
        backbone, info = read_weights(
            folder, dtype="auto", attn_implementation=attn_implementation, local_files_only=True
        )
        pooling_state = _pooling_state(folder, settings.kind)
        projection_state = _projection_state(folder, settings)
    except SafetensorError as error:
        raise ValueError(
            f"the weights in {folder} are damaged or cut off ({error}): run its stage again, or "
            "fetch it again (dvc pull)"
        ) from error
    try:
        check_weights(backbone, info, "run the stage that wrote it again, or fetch it again")
    except ValueError as error:
        raise ValueError(f"{folder} does not hold the model it describes: {error}") from error
    tokenizer = _load_tokenizer(folder, content["max_length_tokens"])
    check_vocabulary(backbone, tokenizer, folder)
    return EncoderParts(
        backbone=backbone,
        tokenizer=tokenizer,
        settings=settings,
        pooling_state=pooling_state,
        projection_state=projection_state,
        max_length_tokens=content["max_length_tokens"],
        prompts=_read(folder / "config_sentence_transformers.json")["prompts"],
    )


def _check_modules(folder: Path) -> None:
    """Refuse a list of modules that leads out of the folder."""
    for module in _read(folder / MODULES_FILE):
        path = PurePosixPath(module["path"])
        if path.is_absolute() or ".." in path.parts or "\\" in module["path"]:
            raise ValueError(
                f"{folder / MODULES_FILE} names {module['path']!r}, expected a folder inside "
                f"{folder}: do not use this model, or fetch it again from where you trust it"
            )


def _load_tokenizer(folder: Path, max_length_tokens: int) -> PreTrainedTokenizerFast:
    """Read tokenizer.json as it is.

    For some types of model AutoTokenizer takes a class that rebuilds normaliser and pre-tokeniser,
    whatever tokenizer_config.json names.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json: fetch it again (dvc pull)")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    found, saved = token_record(tokenizer, max_length_tokens), _read(folder / TOKENS_FILE)
    if found != saved:
        texts = [entry["text"] for entry in found if entry not in saved]
        raise ValueError(
            f"the tokenizer in {folder} gives other ids than when the model was saved, for "
            f"{len(texts)} of {len(found)} fixed texts (such as {texts[:1]}): fetch the folder "
            "again (dvc pull), or install the versions of requirements.lock"
        )
    return tokenizer


def _pooling_state(folder: Path, name: str) -> dict[str, Tensor]:
    kind = kind_of(name)
    return {} if kind.published is None else load_file(folder / kind.folder / WEIGHTS_FILE)


def _projection_state(folder: Path, settings: PoolingSettings) -> dict[str, Tensor]:
    if settings.projection is None:
        return {}
    state = load_file(folder / PROJECTION_FOLDER / WEIGHTS_FILE)
    return {name.removeprefix(PROJECTION_PREFIX): value for name, value in state.items()}


def _write(path: Path, content: Any, indent: int | None = 2) -> None:  # noqa: ANN401 - any JSON value
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, indent=indent, sort_keys=True)
    with writing(path):
        path.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is no model folder of Samovar: {path.name} is missing; "
            "run the stage backbone on it first (backbone.source)"
        ) from None
