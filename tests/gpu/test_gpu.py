"""What only a GPU can show: kernels there agree with the CPU in float32, and bfloat16 trains."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available

from model.backbone.decoder import implementations_of, prove_attention
from model.encoder import packing
from model.encoder.attention import Direction, set_attention
from model.encoder.encoder import Encoder, collate
from model.encoder.packing import PACKED, has_kernel
from model.encoder.precision import Precision, decoder_autocast
from model.training.devices.auto_size import with_fitting_micro_batches
from model.training.devices.team import Team
from model.training.settings import TrainingSource, TrainSettings
from model.training.step_log import read_records
from model.training.trainer import train
from tests.unit.tiny_decoders import NAMES, tiny_config, tiny_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, NO GPU TEST RUNS"),
]

SETTINGS = TrainSettings(
    max_steps=12,
    batch_size=8,
    micro_batch_tokens=4096,
    max_length_tokens=48,
    learning_rate=5e-3,
    min_learning_rate_share=0.1,
    warmup_steps=2,
    weight_decay=0.01,
    gradient_clip_norm=1.0,
    loss="giga",
    temperature=0.05,
    margin_from_step=1,
    hard_negatives=2,
    matryoshka_dims=(16,),
    source_temperature=1.0,
    precision="fp32",
    log_every_steps=1,
    checkpoint_every_steps=6,
    seed=7,
)


def source(texts: list[str]) -> TrainingSource:
    rows = range(32)
    table = pa.table(
        {
            "id": [f"row-{row}" for row in rows],
            "query": [f"{texts[row % len(texts)]} {row}" for row in rows],
            "positives": [[f"ответ {row}: {texts[row % len(texts)]}"] for row in rows],
            "negatives": [
                [f"нет {row} {texts[(row + place) % len(texts)]}" for place in (1, 2)]
                for row in rows
            ],
            "score": pa.nulls(len(rows), pa.float32()),
        }
    )
    return TrainingSource("s", "retrieval", "вопрос: ", "", table, 1.0)


def losses(folder: Path, texts: list[str], work: Path, device: str, **changes) -> list[float]:
    """Loss of every step of a training on this device."""
    encoder = Encoder.load(folder, device=device)
    settings = dataclasses.replace(SETTINGS, **changes)
    work.mkdir()
    log = work / "log.jsonl"
    train(encoder, [source(texts)], checkpoint_folder=work, log_path=log, settings=settings)
    return [record.loss for record in read_records(log)]


@pytest.fixture(autouse=True)
def full_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("tokens", [4096, 200], ids=["plain", "grad-cached"])
def test_a_training_takes_the_same_steps_as_on_the_cpu(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path, tokens: int
) -> None:
    on_cpu, on_gpu = (
        losses(
            pico_folder,
            pico_texts,
            tmp_path / device,
            device,
            micro_batch_tokens=tokens,
        )
        for device in ("cpu", "cuda")
    )
    assert on_gpu == pytest.approx(on_cpu, rel=5e-3, abs=1e-4)


def test_bfloat16_lowers_the_loss(pico_folder: Path, pico_texts: list[str], tmp_path: Path) -> None:
    found = losses(pico_folder, pico_texts, tmp_path / "work", "cuda", precision="bf16")
    assert found[-1] < 0.7 * found[0]


def test_vectors_equal_those_of_the_cpu(pico_folder: Path, pico_texts: list[str]) -> None:
    on_cpu, on_gpu = (
        Encoder.load(pico_folder, device=device).encode(pico_texts, batch_tokens=200)
        for device in ("cpu", "cuda")
    )
    assert on_gpu == pytest.approx(on_cpu, abs=1e-5)


def test_packed_texts_equal_padded_ones_with_their_gradients(
    pico_folder: Path, pico_texts: list[str]
) -> None:
    encoder = Encoder.load(pico_folder, device="cuda")
    items = encoder.tokenize(pico_texts)
    found = []
    for vectors in (
        encoder.embed(items),
        encoder(*collate(items, pad_id=encoder.pad_id, pool_prompt=True, device="cuda")),
    ):
        encoder.zero_grad()
        (vectors @ vectors.T).pow(3).sum().backward()
        found.append([vectors.detach(), *(p.grad.clone() for p in encoder.parameters())])  # pyright: ignore[reportOptionalMemberAccess]  # every weight has a gradient
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_kernel_for_unequal_texts_gives_vectors_and_gradients_of_groups(
    pico_folder: Path, pico_texts: list[str], monkeypatch: pytest.MonkeyPatch, attention: Direction
) -> None:
    """Both in bfloat16, each compared with groups in float32: the kernel's error is no larger."""
    calls: list[int] = []
    kernel = packing.varlen_attn

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return kernel(*args, **kwargs)  # pyright: ignore[reportCallIssue, reportArgumentType]

    monkeypatch.setattr(packing, "varlen_attn", counted)
    encoder = Encoder.load(pico_folder, device="cuda")
    set_attention(encoder.backbone, attention)
    items = encoder.tokenize(pico_texts)

    def found(precision: Precision) -> torch.Tensor:
        with decoder_autocast(encoder.device, precision):
            vectors = encoder.embed(items)
        encoder.zero_grad()
        (vectors @ vectors.T).pow(3).sum().backward()
        gradients = [p.grad for p in encoder.parameters()]
        return torch.cat([part.detach().flatten() for part in (vectors, *gradients)])  # pyright: ignore[reportOptionalMemberAccess]  # every weight has a gradient

    by_kernel = found("bf16")
    assert len(calls) == encoder.backbone.config.num_hidden_layers
    monkeypatch.setattr(packing, "has_kernel", lambda _: False)
    by_groups, exact = found("bf16"), found("fp32")
    assert len(calls) == encoder.backbone.config.num_hidden_layers
    error, usual = ((got - exact).norm() / exact.norm() for got in (by_kernel, by_groups))
    assert error < 2 * usual < 0.1


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_compiled_blocks_take_the_same_steps(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    plain, compiled = (
        losses(
            pico_folder,
            pico_texts,
            tmp_path / str(is_compiled),
            "cuda",
            precision="bf16",
            compile_blocks=is_compiled,
        )
        for is_compiled in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=5e-2, abs=1e-2)


def test_the_largest_micro_batch_is_found_and_remembered(pico_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(pico_folder, device="cuda")
    file = tmp_path / "micro_batches.json"
    sized = with_fitting_micro_batches(encoder, SETTINGS, file, Team())
    assert sized.micro_batch_tokens >= SETTINGS.batch_size * SETTINGS.max_length_tokens
    assert list(json.loads(file.read_text()).values()) == [sized.micro_batch_tokens]


def test_attention_is_proven_with_every_kernel_there_is(pico_folder: Path) -> None:
    encoder = Encoder.load(pico_folder, device="cuda")
    name = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    proof = prove_attention(encoder, "bidirectional", implementations_of(encoder.backbone, name))
    assert {"eager", "sdpa", PACKED} <= set(proof["implementations"])
    assert (f"{PACKED} in bf16" in proof["implementations"]) == has_kernel(encoder.device)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("name", NAMES)
def test_every_packed_decoder_is_proven(
    name: str, attention: Direction, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = tiny_encoder(tiny_config(name), pico_tokenizer, attention).to("cuda")
    proof = prove_attention(encoder, attention, [PACKED])
    assert len(proof["implementations"]) == 1 + has_kernel(encoder.device)
