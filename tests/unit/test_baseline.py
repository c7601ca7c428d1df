"""Stage baseline: random vectors and TF-IDF."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from tasks.baseline.__main__ import MAX_CHARACTERS, sample_texts, write_baselines
from tasks.baseline.random_vectors import RandomVectors
from tasks.baseline.tfidf import SVD_ITERATIONS, Tfidf
from tasks.contract.records import DOCUMENT_SCHEMA, EXAMPLE_SCHEMA, write_table
from tasks.contract.stage import StageError
from tasks.params.load import load_params

PROFILE = Path(__file__).parents[2] / "infra" / "profiles" / "sample.yaml"


@pytest.fixture
def many_texts(pico_texts):
    return [f"{text} {number}" for number in range(6) for text in pico_texts]


def fit(texts, dimension=8):
    return Tfidf.fit(texts, ngram_range=(2, 4), max_ngrams=500, dimension=dimension, seed=1)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_equal_texts_get_equal_random_vectors(pico_texts):
    vectors = RandomVectors(dimension=64, seed=1)
    again = vectors.encode(list(reversed(pico_texts)))[::-1]
    np.testing.assert_array_equal(vectors.encode(pico_texts), again)


def test_random_vectors_of_other_texts_and_seeds_are_unrelated(pico_texts):
    first = RandomVectors(dimension=2048, seed=1).encode(pico_texts)
    second = RandomVectors(dimension=2048, seed=2).encode(pico_texts)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, rtol=1e-6)
    cosines = first @ np.concatenate([first, second]).T - np.eye(len(first), 2 * len(first))
    assert np.abs(cosines).max() < 0.12


def test_tfidf_equals_the_pipeline_of_scikit_learn(many_texts, pico_texts):
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=500
    )
    svd = TruncatedSVD(8, n_iter=SVD_ITERATIONS, random_state=1)
    svd.fit(vectorizer.fit_transform(many_texts))
    expected = normalize(svd.transform(vectorizer.transform(pico_texts)))
    found = fit(many_texts).encode(pico_texts)
    # Directions of equal strength may turn: what counts is the cosine of each pair of texts.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)


def test_a_text_without_known_ngrams_gets_the_zero_vector(many_texts):
    assert not fit(many_texts).encode(["☃☃☃"]).any()


@pytest.mark.parametrize("kind", ["random", "tfidf"])
def test_a_saved_baseline_gives_the_same_vectors(kind, many_texts, pico_texts, tmp_path):
    baseline = RandomVectors(dimension=16, seed=3) if kind == "random" else fit(many_texts)
    baseline.save(tmp_path / "baseline")
    loaded = type(baseline).load(tmp_path / "baseline")
    np.testing.assert_array_equal(loaded.encode(pico_texts), baseline.encode(pico_texts))


def test_too_few_texts_for_the_dimensions_are_refused(pico_texts):
    with pytest.raises(StageError, match=r"12 texts .* too few for 64 dimensions"):
        fit(pico_texts, dimension=64)


def test_the_sample_does_not_depend_on_the_order_of_the_texts(pico_texts):
    forward = sample_texts(iter(pico_texts), 5, seed=1)
    backward = sample_texts(iter([*pico_texts[::-1], pico_texts[0]]), 5, seed=1)
    assert forward == backward
    assert len(forward) == 5


def test_a_text_is_drawn_in_proportion_to_its_length():
    texts = [f"{number} " + "а" * (9 if number % 2 else 99) for number in range(2000)]
    drawn = sample_texts(iter(texts), 200, seed=1)
    assert 0.85 < sum(len(text) > 50 for text in drawn) / len(drawn) < 0.97


def test_the_sample_cuts_long_texts():
    assert [len(text) for text in sample_texts(iter(["а" * 5000]), 5, seed=1)] == [MAX_CHARACTERS]


def test_no_texts_at_all_are_an_error():
    with pytest.raises(StageError, match="no training texts"):
        sample_texts(iter([]), 5, seed=1)


def test_the_stage_writes_the_same_bytes_again(many_texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = pa.Table.from_pylist(
        [
            {"id": text, "task": "retrieval", "source": "s", "lang": "ru", "query": text}
            | {"positives": [text[::-1]], "negatives": []}
            for text in many_texts
        ],
        schema=EXAMPLE_SCHEMA,
    )
    documents = pa.Table.from_pylist(
        [
            {
                "id": "1",
                "source": "d",
                "lang": "ru",
                "title": "",
                "text": "Тула и самовары.",
            }
        ],
        schema=DOCUMENT_SCHEMA,
    )
    write_table(examples, Path("artifacts/ingest/examples"))
    write_table(documents, Path("artifacts/ingest/documents"))
    params = load_params(PROFILE)
    small = params.baseline.model_copy(update={"components": 16})
    digests = []
    for _ in range(2):
        write_baselines(params.model_copy(update={"baseline": small}))
        digests.append(digest(Path("artifacts/baseline")))
    assert digests[0] == digests[1]
    assert set(digests[0]) == {
        "metrics.json",
        "rivals/rivals.json",
        "random/baseline.json",
        "tfidf/baseline.json",
        "tfidf/tfidf.safetensors",
        "tfidf/vocabulary.json",
    }
