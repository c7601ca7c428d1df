"""The texts of one side of a source, tokenised once and kept as flat arrays on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.encoder import Encoder
from model.losses.masks import text_hashes
from model.tokenization import TokenizedText
from model.writing import writing

TEXTS_PER_CALL = 8192


@dataclass(frozen=True)
class TokenPool:
    """Token ids and hashes of distinct texts; only the batch in hand is ever a Python list."""

    ids: np.ndarray
    """Token ids of all texts, one after the other; a memory map."""
    starts: np.ndarray
    """Where each text begins in `ids`, with the total length at the end."""
    prompt_tokens: np.ndarray
    """Tokens of the prompt at the head of each text."""
    hashes: np.ndarray
    """64-bit hash of each text without its prompt."""

    def take(self, texts: np.ndarray) -> list[TokenizedText]:
        """Tokens of these texts, in this order."""
        return [
            TokenizedText(
                ids=self.ids[self.starts[text] : self.starts[text + 1]].tolist(),
                prompt_tokens=int(self.prompt_tokens[text]),
            )
            for text in texts.tolist()
        ]


def tokenize_pool(
    encoder: Encoder, texts: pa.Array, *, prompt: str, max_length_tokens: int, file: Path
) -> TokenPool:
    """Tokenise `texts`, each with `prompt` before it, in slices of bounded size.

    Args:
        encoder: Its tokenizer is used.
        texts: Distinct strings.
        prompt: Prefix of each text, "" for none.
        max_length_tokens: Longer texts are cut.
        file: Where the token ids are put; overwritten.

    Raises:
        OSError: The disk is full.
    """
    lengths: list[int] = []
    prompts: list[int] = []
    hashes_of_parts: list[np.ndarray] = []
    file.parent.mkdir(parents=True, exist_ok=True)
    with writing(file), file.open("wb") as stream:
        for start in range(0, len(texts), TEXTS_PER_CALL):
            part: list[str] = texts[start : start + TEXTS_PER_CALL].to_pylist()
            tokenized = encoder.tokenize(
                part, prompts=[prompt] * len(part), max_length_tokens=max_length_tokens
            )
            for text in tokenized:
                # not tofile: on a full disk it loses what its own buffer holds without an error
                stream.write(np.asarray(text.ids, dtype=np.int32).tobytes())
            lengths.extend(len(text.ids) for text in tokenized)
            prompts.extend(text.prompt_tokens for text in tokenized)
            hashes_of_parts.append(text_hashes(part))
    return TokenPool(
        ids=np.memmap(file, dtype=np.int32, mode="r") if sum(lengths) else np.empty(0, np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        prompt_tokens=np.asarray(prompts, dtype=np.int64),
        hashes=np.concatenate(hashes_of_parts) if hashes_of_parts else np.empty(0, dtype=np.int64),
    )
