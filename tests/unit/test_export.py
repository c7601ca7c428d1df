"""The published folder as others read it: sentence-transformers of several versions, and mteb."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from model.encoder.encoder import Encoder
from model.encoder.export import REQUIREMENTS
from model.encoder.pooling.build import PoolingSettings

CARD = Path(__file__).parents[2] / "tasks/report/templates/card.md"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def saved(source: Encoder, folder: Path, settings: PoolingSettings) -> Path:
    Encoder(source.backbone, source.tokenizer, settings, max_length_tokens=64).save(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "switch"),
    [
        ("mean", "pooling_mode_mean_tokens"),
        ("weighted_mean", "pooling_mode_weightedmean_tokens"),
        ("last", "pooling_mode_lasttoken"),
    ],
)
def test_stock_modules_have_the_names_and_keys_of_the_oldest_version(
    pico_encoder: Encoder, tmp_path: Path, kind: Any, switch: str
) -> None:
    """5.2 knows no sentence_transformers.base, and every unknown key is a TypeError there."""
    saved(pico_encoder, tmp_path, PoolingSettings(kind=kind, projection=12))
    types = [module["type"] for module in read(tmp_path / "modules.json")]
    names = ["Transformer", "Pooling", "Dense", "Normalize"]
    assert types == [f"sentence_transformers.models.{name}" for name in names]
    pooling = read(tmp_path / "1_Pooling" / "config.json")
    assert [key for key, value in pooling.items() if value is True] == ["include_prompt", switch]
    assert sum(key.startswith("pooling_mode_") for key in pooling) == 6
    assert pooling["word_embedding_dimension"] == 32
    transformer = read(tmp_path / "sentence_bert_config.json")
    assert set(transformer) == {"max_seq_length", "do_lower_case", "model_args"}
    assert transformer["max_seq_length"] == 64


def test_an_older_transformers_is_refused_and_not_run_causal(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sentence_transformers.util.environment.get_installed_version", lambda _: "5.5.4"
    )
    with pytest.raises(ImportError, match=r"transformers>=5\.6, but transformers==5\.5\.4"):
        SentenceTransformer(str(pico_folder), device="cpu")


def test_without_the_check_of_requirements_an_argument_stops_an_older_transformers(
    pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(name, value)] = read(pico_folder / "sentence_bert_config.json")["model_args"].items()
    assert inspect.signature(PreTrainedModel.from_pretrained).parameters[name].default is value
    original = PreTrainedModel.from_pretrained.__func__

    def older(cls: Any, *args: Any, **options: Any) -> Any:
        if name in options:  # passed on to the class, which does not know it
            raise TypeError(f"unexpected keyword argument {name!r}")
        return original(cls, *args, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(older))
    with pytest.raises(TypeError, match=name):
        SentenceTransformer(str(pico_folder), device="cpu")


def test_the_card_states_the_required_versions() -> None:
    for name, versions in REQUIREMENTS.items():
        assert f"{name} {versions}" in CARD.read_text(encoding="utf-8")
