"""A decoder without SDPA keeps the kernel that is configured, in every stage that loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Gemma2Config, PreTrainedTokenizerFast

from model.encoder.attention import set_attention
from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from tasks.contract.stage import StageError
from tasks.evaluate.rungs import EncoderRung, Rung, open_rung
from tasks.machine.compute import Machine
from tests.unit.tiny_decoders import SIZES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gemma2_folder(pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """It caps its attention logits, which SDPA cannot do: transformers refuses to load it so."""
    config = Gemma2Config(**SIZES, head_dim=8)
    decoder = AutoModel.from_config(config, attn_implementation="eager")
    set_attention(decoder, "bidirectional")
    encoder = Encoder(decoder, pico_tokenizer, PoolingSettings(kind="mean"), max_length_tokens=64)
    encoder.save_proven(tmp_path, attn_implementation="eager")
    return tmp_path


def opened(folder: Path, attn_implementation: str) -> Rung:
    sizes: dict[str, Any] = {"batch_tokens": 100, "max_length_tokens": 64}
    machine = Machine(torch.device("cpu"), "fp32")
    return open_rung(folder, machine, attn_implementation=attn_implementation, **sizes)


def test_an_evaluation_takes_the_configured_kernel(gemma2_folder: Path) -> None:
    rung = opened(gemma2_folder, "eager")
    assert isinstance(rung, EncoderRung)
    assert rung.encoder.backbone.config._attn_implementation == "eager"
    assert rung.encode(["Да."], "", is_document=False).shape == (1, 32)


def test_a_kernel_the_decoder_lacks_is_a_message(gemma2_folder: Path) -> None:
    with pytest.raises(StageError, match="does not support an attention implementation"):
        opened(gemma2_folder, "sdpa")


def test_no_stage_leaves_the_kernel_to_a_default() -> None:
    """One that did was found out after all trainings."""
    calls = [
        (path.relative_to(ROOT), call.split("def ", maxsplit=1)[0])
        for path in (ROOT / "tasks").rglob("*.py")
        for call in path.read_text(encoding="utf-8").split("Encoder.load(")[1:]
    ]
    assert calls
    assert [path for path, call in calls if "attn_implementation" not in call[:200]] == []
