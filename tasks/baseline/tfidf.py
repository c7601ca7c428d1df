"""Character n-gram TF-IDF reduced by truncated SVD: the rung a trained model must leave behind.

Kept as JSON and safetensors, never as a pickle, so that loading it cannot run code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from model.writing import writing
from tasks.contract.stage import StageError, read_json, write_json

KIND = "tfidf"
SVD_ITERATIONS = 3
"""Power iterations of the randomised SVD; more of them change no score by a point."""


@dataclass(frozen=True)
class Tfidf:
    """A fitted vocabulary, its inverse document frequencies and the SVD projection."""

    ngram_range: tuple[int, int]
    ngrams: list[str]
    """Character n-grams in the order of the columns."""
    idf: np.ndarray
    """Shape (n-grams,), float32."""
    components: np.ndarray
    """Right singular vectors, shape (dimension, n-grams), float32."""

    @classmethod
    def fit(
        cls,
        texts: list[str],
        *,
        ngram_range: tuple[int, int],
        max_ngrams: int,
        dimension: int,
        seed: int,
    ) -> "Tfidf":
        """Learn the `max_ngrams` most frequent n-grams and the `dimension` strongest directions.

        Raises:
            StageError: There are too few texts or n-grams for that many directions.
        """
        vectorizer = _vectorizer(ngram_range, max_features=max_ngrams)
        weights = cast("csr_matrix", vectorizer.fit_transform(texts))
        num_texts, num_ngrams = cast("tuple[int, int]", weights.shape)
        if min(num_texts, num_ngrams) <= dimension:
            raise StageError(
                f"TF-IDF has {num_texts} texts and {num_ngrams} n-grams, too few for "
                f"{dimension} dimensions: lower baseline.components or add texts"
            )
        svd = TruncatedSVD(dimension, n_iter=SVD_ITERATIONS, random_state=seed).fit(weights)
        return cls(
            ngram_range=ngram_range,
            ngrams=vectorizer.get_feature_names_out().tolist(),
            idf=np.asarray(vectorizer.idf_, dtype=np.float32),
            components=np.asarray(svd.components_, dtype=np.float32),
        )

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit-norm float32 vectors of `texts`, shape (texts, dimension); zero without n-grams."""
        vectorizer = _vectorizer(self.ngram_range, vocabulary=self.ngrams)
        vectorizer.idf_ = self.idf
        vectors = np.asarray(vectorizer.transform(texts) @ self.components.T, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms == 0.0, 1.0, norms)

    def save(self, folder: Path) -> None:
        """Write vocabulary, idf and components to `folder`."""
        folder.mkdir(parents=True)
        write_json(folder / "baseline.json", {"kind": KIND, "ngram_range": list(self.ngram_range)})
        write_json(folder / "vocabulary.json", self.ngrams)
        tensors = {"idf": self.idf, "components": np.ascontiguousarray(self.components)}
        with writing(folder / "tfidf.safetensors"):
            save_file(tensors, folder / "tfidf.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Tfidf":
        """Read what `save` wrote."""
        low, high = read_json(folder / "baseline.json")["ngram_range"]
        arrays = load_file(folder / "tfidf.safetensors")
        return cls(
            ngram_range=(low, high),
            ngrams=json.loads((folder / "vocabulary.json").read_text(encoding="utf-8")),
            idf=arrays["idf"],
            components=arrays["components"],
        )


def _vectorizer(
    ngram_range: tuple[int, int],
    *,
    max_features: int | None = None,
    vocabulary: list[str] | None = None,
) -> TfidfVectorizer:
    return TfidfVectorizer(
        analyzer="char_wb",
        ngram_range=ngram_range,
        sublinear_tf=True,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]  # the stub knows float64 alone
        max_features=max_features,
        vocabulary=vocabulary,
    )
