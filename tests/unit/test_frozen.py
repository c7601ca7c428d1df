"""Frozen models: what they say of a batch is what they say of its texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler, normalize
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings
from model.training.data import recorded_vectors
from model.training.data.batches import Batch, Step
from model.training.data.recorded_vectors import RecordedVectors, text_keys, write_vectors
from model.training.devices.team import Team
from model.training.objective.frozen import FrozenModel, FrozenModels, RecordedModel
from tests.unit.test_batches import ROWS, plan_of, source_of
from tests.unit.test_encoder import word_tokenizer

QUERY, DOCUMENT = "Вопрос: ", "Текст: "


@pytest.fixture
def batch(pico_encoder: Encoder, tmp_path: Path) -> Batch:
    """Four queries and their documents, in the tokens of the student."""
    source = source_of(ROWS, prompt=QUERY, document_prompt=DOCUMENT)
    return plan_of(pico_encoder, tmp_path, source).batch(2)


@pytest.fixture
def stranger() -> Encoder:
    """A model of another size, with words for tokens."""
    words = " ".join([QUERY, DOCUMENT, *(f"{q} {p[0]} {' '.join(n)}" for q, p, n in ROWS)]).split()
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(["?", "</s>", *words]))}
    tokenizer: PreTrainedTokenizerFast = word_tokenizer(vocabulary, "</s>")
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=12, initializer_range=0.5,
        is_causal=False,
    )  # fmt: skip
    settings = PoolingSettings(kind="mean")
    return Encoder(Qwen3Model(config), tokenizer, settings, max_length_tokens=32).eval()


def step_of(*parts: Batch) -> Step:
    return Step("pairs", list(parts))


def embed(model: FrozenModel, batch: Batch, team: Team | None = None, **options: Any) -> np.ndarray:
    team = team or Team()
    own = team.texts([len(item.ids) for item in batch.items])
    settings = {"budget_tokens": 40, "precision": "fp32"} | options
    return model.embed(step_of(batch), own, team, **settings).numpy()


@pytest.mark.parametrize("prompts", [(None, None), ("query: ", "passage: "), ("", None)])
def test_a_model_with_another_tokenizer_embeds_the_texts_of_the_batch(
    batch: Batch, stranger: Encoder, prompts: tuple[str | None, str | None]
) -> None:
    query, document = prompts
    got = embed(FrozenModel(stranger, query, document, max_length_tokens=64), batch)
    plain = [plain.text for plain in batch.plain_texts]
    assert sum(text.startswith("вопрос") for text in plain) == 4
    expected = [
        stranger.encode(texts, prompt=prompt, batch_tokens=1000)
        for texts, prompt in (
            (plain[:4], QUERY if query is None else query),
            (plain[4:], DOCUMENT if document is None else document),
        )
    ]
    np.testing.assert_allclose(got, np.concatenate(expected), atol=1e-6)


def test_the_student_itself_says_what_its_own_tokens_say(
    batch: Batch, pico_encoder: Encoder
) -> None:
    """The plain texts and the tokens of a batch are of the same texts, in the same order."""
    got = embed(FrozenModel(pico_encoder, None, None, max_length_tokens=40), batch)
    with torch.no_grad():
        expected = pico_encoder.embed(batch.items).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_texts_are_cut_to_the_length_of_the_training(batch: Batch, pico_encoder: Encoder) -> None:
    cut = embed(FrozenModel(pico_encoder, None, None, max_length_tokens=5), batch)
    whole = embed(FrozenModel(pico_encoder, None, None, max_length_tokens=40), batch)
    assert np.abs(cut - whole).max() > 0.01


def test_one_model_that_guides_and_teaches_is_asked_once(
    batch: Batch, stranger: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = stranger.embed

    def count(items: Any) -> torch.Tensor:
        asked.extend(len(item.ids) for item in items)
        return real(items)

    monkeypatch.setattr(stranger, "embed", count)
    model = FrozenModel(stranger, None, None, max_length_tokens=64)
    vectors = FrozenModels(model, model).vectors(
        step_of(batch), range(len(batch.items)), Team(), 40, "fp32"
    )
    assert len(asked) == len(batch.items)
    assert vectors.guide_MD is vectors.teacher_MD
    assert vectors.guide_MD is not None
    assert not vectors.guide_MD.requires_grad


def test_without_models_nobody_is_asked(batch: Batch) -> None:
    vectors = FrozenModels().vectors(step_of(batch), range(len(batch.items)), Team(), 40, "fp32")
    assert vectors.guide_MD is vectors.teacher_MD is None


def test_a_recorded_model_says_what_the_model_says(
    batch: Batch, stranger: Encoder, tmp_path: Path
) -> None:
    model = FrozenModel(stranger, "query: ", "passage: ", max_length_tokens=64)
    expected = embed(model, batch)
    keys = text_keys([(plain.is_query, plain.text) for plain in batch.plain_texts])
    unique, places = np.unique(keys, return_index=True)
    halves = expected[places].astype(np.float16)
    write_vectors(tmp_path / "vectors", unique, halves.shape[1], [halves])
    recorded = RecordedModel(RecordedVectors(tmp_path / "vectors"), torch.device("cpu"))
    vectors = FrozenModels(teacher=recorded).vectors(step_of(batch), [], Team(), 40, "fp32")
    assert vectors.teacher_MD is not None
    assert vectors.teacher_MD.dtype == torch.float32
    np.testing.assert_allclose(vectors.teacher_MD, expected, atol=1e-3)
    np.testing.assert_allclose(vectors.teacher_MD.norm(dim=1), 1.0, atol=1e-6)


def test_a_teacher_is_given_less_its_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_vectors, "SUMMED_ROWS", 3)
    rng = np.random.default_rng(1)
    # as those of e5: what all have in common outweighs what tells them apart
    given = (rng.normal(size=(10, 6)) + 3.0) * rng.uniform(0.5, 2.0, size=(10, 1))
    texts = [(False, f"текст {number}") for number in range(10)]
    keys = text_keys(texts)
    order = np.argsort(keys)
    write_vectors(tmp_path / "vectors", keys[order], 6, [given[order].astype(np.float16)])
    unit = normalize(given)
    found = RecordedVectors(tmp_path / "vectors", whitening=0.0).find(texts)
    expected = normalize(StandardScaler(with_std=False).fit_transform(unit))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert cosine_similarity(unit).min() > 0.5
    assert cosine_similarity(found).min() < -0.3


@pytest.mark.parametrize("whitening", [0.25, 0.5])
def test_a_whitened_teacher_is_as_wide_in_every_direction(whitening: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = rng.normal(size=(400, 5)) * [3.0, 2.0, 1.0, 0.8, 0.6] + [2.0, 0.0, 5.0, 0.0, 0.0]
    texts = [(False, f"текст {number}") for number in range(400)]
    keys = text_keys(texts)
    order = np.argsort(keys)
    write_vectors(tmp_path / "vectors", keys[order], 5, [given[order].astype(np.float16)])
    unit = normalize(given.astype(np.float16).astype(float))
    whitened = PCA(whiten=True).fit(unit)
    axes = whitened.components_
    # scikit-learn turns to the principal axes; back from them it is ZCA
    expected = whitened.transform(unit) * whitened.explained_variance_ ** (0.5 - whitening) @ axes
    found = RecordedVectors(tmp_path / "vectors", whitening=whitening).find(texts)
    np.testing.assert_allclose(found, normalize(expected), atol=5e-3)


def test_documents_of_the_kind_of_queries_are_shown_as_queries(
    pico_encoder: Encoder, stranger: Encoder, tmp_path: Path
) -> None:
    source = source_of(ROWS, prompt=QUERY, document_prompt=QUERY, task="sts", is_symmetric=True)
    batch = plan_of(pico_encoder, tmp_path, source).batch(2)
    got = embed(FrozenModel(stranger, "query: ", "passage: ", max_length_tokens=64), batch)
    texts = [plain.text for plain in batch.plain_texts]
    expected = stranger.encode(texts, prompt="query: ", batch_tokens=1000)
    np.testing.assert_allclose(got, expected, atol=1e-6)
