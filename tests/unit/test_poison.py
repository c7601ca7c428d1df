"""A model folder from elsewhere runs no code of its own, whatever lies in it."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from model.backbone.source import load_decoder
from tests.unit.tiny_decoders import tiny_config


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._trace),)


@pytest.fixture
def folder(pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A decoder as others publish it."""
    Qwen3ForCausalLM(tiny_config("qwen3")).save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_as_a_pickle_are_refused_and_not_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "trace")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_decoder(str(folder), revision=None, attn_implementation="sdpa")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("model_type", ["qwen3", "made_up"])
def test_python_files_beside_the_weights_are_not_run(
    folder: Path, tmp_path: Path, model_type: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = model_type
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    config["auto_map"] = {name: f"poison.{name}" for name in names}
    (folder / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "trace"
    (folder / "poison.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    if model_type == "qwen3":
        load_decoder(str(folder), revision=None, attn_implementation="sdpa")
    else:
        with pytest.raises(ValueError, match="contains custom code"):
            load_decoder(str(folder), revision=None, attn_implementation="sdpa")
    assert not trace.exists()
