"""The lowest rung of the ladder: a vector per text that knows nothing of its meaning."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from tasks.contract.stage import read_json, write_json

KIND = "random"


@dataclass(frozen=True)
class RandomVectors:
    """Gaussian directions drawn from the hash of a text: equal texts get equal vectors."""

    dimension: int
    seed: int

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit-norm float32 vectors of `texts`, shape (texts, dimension)."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            digest = xxhash.xxh3_64_intdigest(text.encode("utf-8"), seed=self.seed)
            vectors[row] = np.random.Generator(np.random.PCG64(digest)).standard_normal(
                self.dimension, dtype=np.float32
            )
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write the size and the seed to `folder`; there is nothing else to keep."""
        folder.mkdir(parents=True)
        write_json(
            folder / "baseline.json",
            {"kind": KIND, "dimension": self.dimension, "seed": self.seed},
        )

    @classmethod
    def load(cls, folder: Path) -> "RandomVectors":
        """Read what `save` wrote."""
        config = read_json(folder / "baseline.json")
        return cls(dimension=config["dimension"], seed=config["seed"])
