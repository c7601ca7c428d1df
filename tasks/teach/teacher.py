"""A teacher, and whether what it says can be believed."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer

from tasks.contract.stage import StageError
from tasks.params.teach import TeacherModel

BATCH_TEXTS = 32
SHOWN_CHARACTERS = 60
MODULES = "modules.json"

logger = logging.getLogger(__name__)


class Teacher:
    """An embedding model behind sentence-transformers."""

    def __init__(self, name: str, settings: TeacherModel, device: torch.device) -> None:
        """Load it.

        Raises:
            StageError: It cannot be loaded, or has no pooling of its own.
        """
        self._name = name
        self._settings = settings
        is_folder = Path(settings.source).is_dir()
        if is_folder and not (Path(settings.source) / MODULES).is_file():
            raise StageError(
                f"teach.teachers.{name}: {settings.source} has no {MODULES}, so nothing says how "
                "its states become a vector: save it by sentence-transformers, with its pooling"
            )
        if is_folder and settings.revision is not None:
            raise StageError(
                f"teach.teachers.{name}.revision is for hub ids, but {settings.source} is a "
                "folder: set it to null"
            )
        try:
            self._model = SentenceTransformer(
                settings.source,
                revision=settings.revision,
                device=str(device),
                trust_remote_code=False,
                local_files_only=is_folder,
            )
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise StageError(
                f"teach.teachers.{name}: sentence-transformers cannot load {settings.source!r} "
                f"({type(error).__name__}: {first_line})"
            ) from error
        own = self._model.max_seq_length or settings.max_length_tokens
        self._model.max_seq_length = min(own, settings.max_length_tokens)
        self.size: int = len(self.embed(["Проба."], is_query=True)[0])
        """Numbers per vector."""

    def embed(self, texts: list[str], *, is_query: bool) -> npt.NDArray[np.float16]:
        """Unit-norm vectors of texts, shape (texts, size).

        Raises:
            StageError: The teacher answers numbers that are not finite.
        """
        settings = self._settings
        vectors = self._model.encode(
            texts,
            prompt=settings.query_prompt if is_query else settings.document_prompt,
            batch_size=BATCH_TEXTS,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        strange = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(strange):
            raise StageError(
                f"teach.teachers.{self._name} answers numbers that are not finite for "
                f"{len(strange)} of {len(texts)} texts, such as "
                f"{texts[int(strange[0])][:SHOWN_CHARACTERS]!r}: its weights are damaged, or it "
                "overflows in their type"
            )
        return vectors.astype(np.float16)
