"""A teacher on this machine: a model that sentence-transformers loads, or one of this project."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model

from model.encoder.encoder import Encoder
from model.training.data.recorded_vectors import Shown
from tasks.contract.stage import StageError
from tasks.params.teach import TeacherModel
from tasks.teach.cache import Vectors
from tasks.teach.vectors import Keep, unit_vectors

BATCH_TEXTS = 32
BATCH_TOKENS = 8192
PROBE = "Проба."
MODULES = "modules.json"
OWN = "samovar.json"
STOCK = "sentence_transformers."
"""How the names of modules begin whose code is that of sentence-transformers."""

logger = logging.getLogger(__name__)

Encode = Callable[[list[str], str], npt.NDArray[np.float32]]
"""Vectors of texts behind a prompt."""


class Teacher:
    """An embedding model, loaded, and asked block by block."""

    def __init__(self, where: str, settings: TeacherModel, device: torch.device) -> None:
        """Load it; `where` in params.yaml it is named, such as teach.teachers.e5, stands in errors.

        Raises:
            StageError: It cannot be loaded, or has no pooling of its own.
        """
        self._where = where
        self._settings = settings
        source, is_folder = settings.source, Path(settings.source).is_dir()
        if is_folder and settings.revision is not None:
            raise StageError(
                f"{where}.revision is for hub ids, but {source} is a folder: set it to null"
            )
        if is_folder and not (Path(source) / MODULES).is_file():
            raise self._without_pooling(f"has no {MODULES}")
        try:
            self._encode = _open(settings, device)
            # sentence-transformers pools the states of any model of the hub in a way of its own
            is_whole = is_folder or is_sentence_transformer_model(
                source, revision=settings.revision
            )
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise StageError(
                f"{where}: sentence-transformers cannot load {source!r} "
                f"({type(error).__name__}: {first_line}): see that it is whole, with the folders "
                f"that its {MODULES} names"
            ) from error
        if not is_whole:
            raise self._without_pooling(f"has no {MODULES}")
        try:
            self.embed([PROBE], is_query=True)
        except KeyError as error:
            raise self._without_pooling(f"has a {MODULES} without a pooling") from error

    def answer(self, blocks: Iterator[list[Shown]], keep: Keep) -> None:
        """Ask about the texts of all blocks, each of queries or of documents alone.

        Raises:
            StageError: What the teacher answers is of no use.
            OSError: The disk is full; what was kept before stays.
        """
        for block in blocks:
            keep(block, self.embed([text for _, text in block], is_query=block[0][0]), 0)

    def embed(self, texts: list[str], *, is_query: bool) -> Vectors:
        """Unit-norm vectors of texts, shape (texts, size).

        Raises:
            StageError: The teacher answers numbers that are not finite, or zeros.
        """
        try:
            return unit_vectors(self.encode(texts, is_query=is_query), texts)
        except ValueError as error:
            raise StageError(f"{self._where} {error}") from error

    def encode(self, texts: list[str], *, is_query: bool) -> npt.NDArray[np.float32]:
        """The same as the model gives them, unchecked."""
        settings = self._settings
        return self._encode(texts, settings.query_prompt if is_query else settings.document_prompt)

    def _without_pooling(self, what: str) -> StageError:
        return StageError(
            f"{self._where}: {self._settings.source} {what}, so nothing says how its "
            "states become a vector: save it by sentence-transformers, with its pooling"
        )


def _open(settings: TeacherModel, device: torch.device) -> Encode:
    """Load the model; no code of a folder is run.

    A pooling with weights is in the folder of a version of this project as a module of its own,
    which our encoder reads by the code that wrote it.
    """
    folder = Path(settings.source)
    if (folder / OWN).is_file():
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        if not all(module["type"].startswith(STOCK) for module in modules):
            return _open_own(folder, settings.max_length_tokens, device)
    model = SentenceTransformer(
        settings.source,
        revision=settings.revision,
        device=str(device),
        trust_remote_code=False,
        local_files_only=folder.is_dir(),
    )
    own = model.max_seq_length or settings.max_length_tokens
    model.max_seq_length = min(own, settings.max_length_tokens)

    def encode(texts: list[str], prompt: str) -> npt.NDArray[np.float32]:
        return model.encode(
            texts,
            prompt=prompt,
            batch_size=BATCH_TEXTS,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )

    return encode


def _open_own(folder: Path, max_length_tokens: int, device: torch.device) -> Encode:
    encoder = Encoder.load(folder, device=device, attn_implementation="sdpa")
    limit = min(encoder.max_length_tokens, max_length_tokens)

    def encode(texts: list[str], prompt: str) -> npt.NDArray[np.float32]:
        return encoder.encode(
            texts, prompt=prompt, batch_tokens=BATCH_TOKENS, max_length_tokens=limit
        )

    return encode
