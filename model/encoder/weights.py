"""Reading weights and believing them only if they are those of the config.

transformers fills a tensor that a checkpoint lacks with random numbers and skips one it has no
place for; neither is an error there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

SHOWN = 3
"""Names that a message lists."""

LoadingInfo = dict[str, Any]
"""Keys that are missing, unexpected or of another shape, as `from_pretrained` reports them."""


def read_weights(source: str | Path, **options: Any) -> tuple[PreTrainedModel, LoadingInfo]:  # noqa: ANN401 - options of from_pretrained
    """The model without its head, and what was not right about its weights.

    Args:
        source: A folder or a hub id.
        options: For `from_pretrained`.

    Raises:
        ValueError: The index of the weights names files outside of the folder.
    """
    _refuse_files_elsewhere(Path(source) / SAFE_WEIGHTS_INDEX_NAME)
    # a shape that differs is reported with the rest, in place of a RuntimeError
    return AutoModel.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )


def _refuse_files_elsewhere(index: Path) -> None:
    if not index.is_file():
        return
    content = json.loads(index.read_text(encoding="utf-8"))
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{index} has no weight_map: fetch it again, or save the weights anew")  # noqa: TRY004 - a file of the wrong form is a bad value
    elsewhere = {str(name) for name in files.values() if Path(str(name)).name != name}
    if elsewhere:
        raise ValueError(
            f"{index} names files outside of its folder ({_listed(elsewhere)}): put the weights "
            "beside it and name them alone"
        )


def check_weights(model: PreTrainedModel, info: LoadingInfo, advice: str) -> None:
    """Check that every tensor came from the file and that no tensor of a block was left out.

    Args:
        model: As read.
        info: What `read_weights` gave with it.
        advice: Says what to do; ends the message.

    Raises:
        ValueError: The weights are not those of the config.
    """
    mismatched = [
        f"{key} {list(found)}, expected {list(expected)}"
        for key, found, expected in info["mismatched_keys"]
    ]
    strange = [
        key
        for key in info["unexpected_keys"]
        if _belongs_inside(model, key, anywhere=bool(info["missing_keys"]))
    ]
    faults = [
        f"{len(keys)} {kind} ({_listed(keys)})"
        for kind, keys in (
            ("are missing", info["missing_keys"]),
            ("have no place in it", strange),
            ("have another shape", mismatched),
        )
        if keys
    ]
    if faults:
        raise ValueError(
            f"of the tensors of {type(model).__name__} in config.json, {', '.join(faults)}: "
            f"{advice}"
        )


def _belongs_inside(model: PreTrainedModel, key: str, *, anywhere: bool) -> bool:
    """Whether a name lies where the model has a module; heads lie beside it and are not wanted.

    Where tensors are missing, `anywhere` finds them behind a foreign prefix too.
    """
    parts = key.removeprefix(f"{model.base_model_prefix}.").split(".")
    children = {name for name, _ in model.named_children()}
    return not children.isdisjoint(parts if anywhere else parts[:1])


def check_vocabulary(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, place: str | Path
) -> None:
    """Check that every token has a row in the embedding matrix.

    Raises:
        ValueError: One has none.
    """
    rows = decoder.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]  # a matrix
    outside = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= rows}
    if outside:
        raise ValueError(
            f"{len(outside)} tokens of the tokenizer in {place} ({_listed(outside)}) lie beyond "
            f"the {rows} rows of the embedding matrix: remove them from tokenizer.json, or grow "
            "the matrix (resize_token_embeddings) and train their rows"
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (", ..." if len(ordered) > SHOWN else "")
