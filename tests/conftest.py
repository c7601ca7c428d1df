"""Shared fixtures: a pico encoder, built like a real one, small enough for every test."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

# read when torch loads: waiting threads that spin take the cores from every other test process
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# the GPU tests start CUDA in this process, which then sees the same GPUs for good; a stage in it
# wants one
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from model.encoder.encoder import Encoder
from model.encoder.pooling.build import PoolingSettings

PICO_TEXTS = [
    "Самовар стоит на столе.",
    "Байкал — самое глубокое озеро на Земле.",
    "Луна обращается вокруг Земли.",
    "Кошка спит на тёплой печи.",
    "Столица Франции — Париж.",
    "Сколько спутников у Марса?",
    "Водород — самый лёгкий элемент.",
    "Поезд опоздал на два часа из-за снега.",
    "Волга впадает в Каспийское море.",
    "Чай пьют с мёдом, вареньем и сушками.",
    "Эльбрус выше Казбека.",
    "Да.",
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """More only wait for each other on tensors this small, and the number decides the last bits.

    Set before every test, since a stage that runs in this process sets its own.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_gpu_locks(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On a machine with GPUs no test waits for a training, for another test or for its own process.

    A stage that runs in this process keeps its locks for all the tests that follow.
    """
    folder = tmp_path_factory.getbasetemp() / "gpu-locks" / uuid.uuid4().hex
    monkeypatch.setenv("SAMOVAR_GPU_LOCKS", str(folder))


@pytest.fixture(scope="session")
def remote_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for the code of model folders, one for all tests.

    Once such code has been imported, Python looks for all of it below that place.
    """
    folder = str(tmp_path_factory.mktemp("remote-code"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def pico_texts() -> list[str]:
    """A dozen Russian sentences of different lengths."""
    return list(PICO_TEXTS)


@pytest.fixture(scope="session")
def pico_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(PICO_TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")  # noqa: S106 - names of tokens


@pytest.fixture(scope="session")
def pico_folder(
    tmp_path_factory: pytest.TempPathFactory, pico_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Folder of a bidirectional, mean-pooled encoder of 3 blocks with random weights; read only."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(pico_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.1,
        is_causal=False,
    )
    folder = tmp_path_factory.mktemp("pico") / "model"
    settings = PoolingSettings(kind="mean")
    Encoder(Qwen3Model(config), pico_tokenizer, settings, max_length_tokens=64).save(folder)
    return folder


@pytest.fixture
def pico_encoder(pico_folder: Path) -> Encoder:
    """A fresh copy of the pico encoder, in eval mode on the CPU."""
    return Encoder.load(pico_folder)
