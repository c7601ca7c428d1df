"""The thing that is judged: a model folder, a baseline or a rival, behind one call."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model.encoder.precision import Precision
from tasks.baseline import random_vectors, rival, tfidf
from tasks.baseline.random_vectors import RandomVectors
from tasks.baseline.rival import Rival
from tasks.baseline.tfidf import Tfidf
from tasks.contract.stage import StageError
from tasks.machine.compute import Machine

if TYPE_CHECKING:
    from model.encoder.encoder import Encoder


class Rung(Protocol):
    """Turns texts into unit-norm vectors."""

    def encode(self, texts: list[str], prefix: str, *, is_document: bool) -> np.ndarray:
        """Float32 vectors of `texts`, each written after `prefix`; shape (texts, dimension).

        Args:
            texts: Any number of texts.
            prefix: The instruction of this chain for them, "" for none.
            is_document: Whether they are documents of a task that tells them from queries.
        """
        ...


class BaselineRung:
    """Random vectors or TF-IDF: neither reads an instruction, so the prefix is dropped."""

    def __init__(self, baseline: RandomVectors | Tfidf) -> None:
        self.baseline = baseline

    def encode(self, texts: list[str], prefix: str, *, is_document: bool) -> np.ndarray:  # noqa: ARG002 - protocol
        """Vectors of the bare texts."""
        return self.baseline.encode(texts)


class RivalRung:
    """A finished model of somebody else, with the prompts that its card asks for."""

    def __init__(self, rival: Rival, machine: Machine) -> None:
        # it brings sentence-transformers, which no other rung needs
        from tasks.teach.teacher import Teacher

        self.teacher = Teacher(f"baseline.rivals.{rival.name}", rival.settings, machine.device)

    def encode(self, texts: list[str], prefix: str, *, is_document: bool) -> np.ndarray:  # noqa: ARG002 - protocol
        """Vectors of the texts behind its own prompts: of queries, or of documents."""
        return self.teacher.encode(texts, is_query=not is_document)


class EncoderRung:
    """A model folder of this project."""

    def __init__(
        self,
        encoder: "Encoder",
        *,
        batch_tokens: int,
        max_length_tokens: int,
        precision: Precision,
    ) -> None:
        self.encoder = encoder
        self.batch_tokens = batch_tokens
        self.max_length_tokens = max_length_tokens
        self.precision: Precision = precision

    def encode(self, texts: list[str], prefix: str, *, is_document: bool) -> np.ndarray:  # noqa: ARG002 - protocol
        """Vectors of the texts behind their instruction."""
        return self.encoder.encode(
            texts,
            prompt=prefix,
            batch_tokens=self.batch_tokens,
            max_length_tokens=self.max_length_tokens,
            precision=self.precision,
        )


def open_rung(
    folder: Path,
    machine: Machine,
    *,
    attn_implementation: str,
    batch_tokens: int,
    max_length_tokens: int,
) -> Rung:
    """The baseline or the encoder that `folder` holds, with the kernel it was trained with.

    Raises:
        StageError: The folder is missing or holds neither.
    """
    if (folder / "baseline.json").exists():
        kind = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))["kind"]
        if kind == rival.KIND:
            return RivalRung(Rival.load(folder), machine)
        kinds = {random_vectors.KIND: RandomVectors, tfidf.KIND: Tfidf}
        return BaselineRung(kinds[kind].load(folder))
    if not (folder / "config.json").exists():
        raise StageError(
            f"{folder} holds no model: run the stage that writes it, or correct the folder of this "
            f"rung in evaluate.checkpoints"
        )
    # Two seconds of imports that the baselines do without.
    from model.encoder.compilation import compile_blocks
    from model.encoder.encoder import Encoder

    try:
        encoder = Encoder.load(
            folder, device=machine.device, attn_implementation=attn_implementation
        )
    except ValueError as error:
        raise StageError(str(error)) from error
    if machine.compile_blocks:
        compile_blocks(encoder.backbone)
    return EncoderRung(
        encoder,
        batch_tokens=batch_tokens,
        max_length_tokens=max_length_tokens,
        precision=machine.precision,
    )
