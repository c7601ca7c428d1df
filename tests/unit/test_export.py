"""The published folder as others read it: sentence-transformers of several versions, and mteb."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model.encoder.encoder import Encoder
from model.encoder.export import REQUIREMENTS
from model.encoder.pooling.build import KINDS, LatentSize, PoolingSettings
from tests.unit.tiny_decoders import tiny_config, tiny_encoder

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
    args = {"model_args", "tokenizer_args"}
    assert set(transformer) == {"max_seq_length", "do_lower_case", *args}
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


def test_what_the_card_says_of_cut_vectors_is_true(pico_folder: Path) -> None:
    cut = SentenceTransformer(str(pico_folder), device="cpu", truncate_dim=8)
    assert np.linalg.norm(cut.encode("Да.")) < 0.99
    normalised = cut.encode("Да.", normalize_embeddings=True)
    assert np.linalg.norm(normalised) == pytest.approx(1, abs=1e-5)


ALPHABET = [
    "",
    " ",
    "\n",
    "a",
    "Я",
    "🫖",
    "👩\u200d👧",
    "\x00",
    "\u200b",
    "\u202e",
    "עִ",
    "e\u0301",
    "ﬁ",
    "<eos>",
]
ODD_TEXTS = [first + last for first in ALPHABET for last in ALPHABET] + [
    *(" " * 50, "\u200f", "слово " * 17_000, "🫖" * 300),
]


def stock(folder: Path, *, trusted: bool = False) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=trusted)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_both_loaders_agree_on_odd_texts_alone_and_in_batches(
    pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    """For qwen2 AutoTokenizer would compose characters that the decoder saw decomposed."""
    encoder = tiny_encoder(tiny_config(name), pico_tokenizer, "bidirectional")
    encoder.save(tmp_path)
    theirs, loaded = stock(tmp_path), Encoder.load(tmp_path)
    assert len(ODD_TEXTS) == 200
    expected = [item.ids for item in encoder.tokenize(ODD_TEXTS)]
    assert [item.ids for item in loaded.tokenize(ODD_TEXTS)] == expected
    ids = theirs.tokenizer(ODD_TEXTS, truncation=True)["input_ids"]
    assert ids == expected
    vectors = encoder.encode(ODD_TEXTS, batch_tokens=1000)
    np.testing.assert_allclose(theirs.encode(ODD_TEXTS), vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text in ALPHABET:
        np.testing.assert_allclose(theirs.encode(text), vectors[ODD_TEXTS.index(text)], atol=1e-5)


@pytest.mark.usefixtures("remote_code")
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_text_has_the_same_vector_in_both_loaders(
    pico_encoder: Encoder, tmp_path: Path, kind: Any
) -> None:
    latent = LatentSize(num_latents=6, num_heads=2, head_dim=4, expansion=2)
    settings = PoolingSettings(kind=kind, latent=latent, layer_tokens="mean")
    saved(pico_encoder, tmp_path / "model", settings)
    theirs = stock(tmp_path / "model", trusted=True)
    [expected] = Encoder.load(tmp_path / "model").encode([""], batch_tokens=10)
    np.testing.assert_allclose(theirs.encode([""])[0], expected, atol=1e-5)
    np.testing.assert_allclose(theirs.encode(["", "Да."])[0], expected, atol=1e-5)
    assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-5)


def test_half_a_surrogate_pair_is_refused_by_name(pico_encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"text 1 holds '\\udc00', half a surrogate pair"):
        pico_encoder.encode(["Да.", "x\udc00"], batch_tokens=10)


def test_a_tokenizer_that_ends_texts_itself_gets_no_second_end_token(
    pico_encoder: Encoder, tmp_path: Path
) -> None:
    """Qwen3-Embedding ends a text with another token than its eos_token."""
    backend = Tokenizer.from_str(pico_encoder.tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="$A <pad>", special_tokens=[("<pad>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")  # noqa: S106 - name of a token
    settings = PoolingSettings(kind="last")
    encoder = Encoder(pico_encoder.backbone, tokenizer, settings, max_length_tokens=8).eval()
    texts = ["Да.", "", "слово " * 30]
    for item in encoder.tokenize(texts):
        assert item.ids.count(0) == 1
        assert item.ids[-1] == 0
        assert 1 not in item.ids
    encoder.save(tmp_path)
    vectors = encoder.encode(texts, batch_tokens=100)
    np.testing.assert_allclose(stock(tmp_path).encode(texts), vectors, atol=1e-5)


def test_a_tokenizer_that_changed_is_refused_at_load(pico_encoder: Encoder, tmp_path: Path) -> None:
    pico_encoder.save(tmp_path)
    record = read(tmp_path / "tokenizer_check.json")
    assert len(record) == 50
    assert record[-1]["times"] == len(record[-1]["ids"]) == 64, "one is over the limit"
    content = read(tmp_path / "tokenizer.json")
    content["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"gives other ids .* for \d of 50 fixed texts"):
        Encoder.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json: fetch it again"):
        Encoder.load(tmp_path)


@pytest.mark.parametrize("path", ["../x", "/etc", "1_Pooling/../../x", "..\\x"])
def test_modules_outside_the_folder_are_refused_at_load(
    pico_encoder: Encoder, tmp_path: Path, path: str
) -> None:
    pico_encoder.save(tmp_path)
    modules = read(tmp_path / "modules.json")
    modules[1]["path"] = path
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="expected a folder inside"):
        Encoder.load(tmp_path)
