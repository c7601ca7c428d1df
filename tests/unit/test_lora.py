"""LoRA: only the adapters move, exactly, and what is saved is a plain encoder."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_latest
from model.encoder.encoder import Encoder
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.lora import Adapters
from model.training.devices.team import Team
from model.training.settings import LoraSettings
from model.training.trainer import train
from tests.unit.test_grad_cache import batch_of
from tests.unit.test_trainer import SETTINGS, source_of, weights_of

LORA = LoraSettings(rank=4, alpha=6, dropout=0.3, target_modules=("q_proj", "v_proj", "down_proj"))
ADAPTED = dataclasses.replace(SETTINGS, lora=LORA, micro_batch_tokens=150)


def adapted(folder: Path) -> tuple[Encoder, Adapters]:
    """An encoder whose adapters are not zero, as after some steps."""
    encoder = Encoder.load(folder)
    adapters = Adapters(encoder, LORA, seed=1)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return encoder, adapters


def test_fresh_adapters_change_no_vector(pico_folder: Path, pico_texts: list[str]) -> None:
    plain, encoder = Encoder.load(pico_folder), Encoder.load(pico_folder)
    Adapters(encoder, LORA, seed=1)
    expected = plain.encode(pico_texts, batch_tokens=256)
    assert (encoder.encode(pico_texts, batch_tokens=256) == expected).all()


def test_merged_weights_are_the_sum_written_out(pico_folder: Path, pico_texts: list[str]) -> None:
    """W + (alpha / rank) B A in float64, and vectors that do not notice the merge."""
    encoder, adapters = adapted(pico_folder)
    before = encoder.encode(pico_texts, batch_tokens=256)
    parts = {name: tensor.double() for name, tensor in weights_of(encoder).items()}
    adapters.merge()
    after = encoder.encode(pico_texts, batch_tokens=256)
    assert abs(after - before).max() < 1e-6
    original = Encoder.load(pico_folder)
    assert abs(before - original.encode(pico_texts, batch_tokens=256)).max() > 1e-2
    merged, base = encoder.state_dict(), original.state_dict()
    assert list(merged) == list(base)
    for name, tensor in merged.items():
        stem, expected = name.removesuffix(".weight"), base[name].double()
        if f"{stem}.lora_A.default.weight" in parts:
            rows, columns = (parts[f"{stem}.lora_{side}.default.weight"] for side in "AB")
            expected = expected + 6 / 4 * columns @ rows
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_a_trained_folder_is_loaded_without_peft(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    encoder = Encoder.load(pico_folder)
    run(encoder, pico_texts, tmp_path)
    encoder.save(tmp_path / "model")
    before, after = Encoder.load(pico_folder), Encoder.load(tmp_path / "model")
    assert_moved_are(before, after, LORA.target_modules)
    expected = encoder.encode(pico_texts, batch_tokens=256)
    assert abs(after.encode(pico_texts, batch_tokens=256) - expected).max() < 1e-6
    code = "import sys; sys.modules['peft'] = None; from model.encoder.encoder import Encoder; "
    code += (
        "from pathlib import Path; Encoder.load(Path(sys.argv[1])).encode(['a'], batch_tokens=9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)


def assert_moved_are(before: Encoder, after: Encoder, targets: tuple[str, ...]) -> None:
    others = after.state_dict()
    assert list(others) == list(before.state_dict())
    for name, tensor in before.state_dict().items():
        is_target = name.split(".")[-2] in targets
        assert torch.equal(tensor, others[name]) != is_target, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_passes_of_grad_cache_drop_the_same_inputs(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path, dropout: float
) -> None:
    """The cached gradient is the plain one, and frozen weights have none."""
    encoder, _ = adapted(pico_folder)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    encoder.train()
    batch = batch_of(encoder, pico_texts, tmp_path, "retrieval", 3)
    direction = torch.randn(len(batch.items), 32, generator=torch.Generator().manual_seed(2))
    parts = [list(range(9)), list(range(9, 11)), list(range(11, len(batch.items)))]

    def loss_of(embedding_MD: Tensor, _: Team) -> tuple[Tensor, Tensor]:
        leaf_MD = embedding_MD.detach().requires_grad_()
        loss = (leaf_MD @ direction.T).softmax(dim=1).square().sum()
        return loss.detach(), torch.autograd.grad(loss, [leaf_MD])[0]

    found = []
    for backward in (plain_backward, cached_backward):
        encoder.zero_grad()
        torch.manual_seed(0)
        backward(
            lambda part: encoder.embed([batch.items[text] for text in part]),
            parts, len(batch.items), loss_of, Team(),
        )  # fmt: skip
        named = encoder.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert {name for name in found[0] if "lora_" not in name} == set()
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def run(encoder: Encoder, texts: list[str], folder: Path, **options) -> None:
    train(
        encoder,
        [source_of(texts, [0, 1, 2, 3] * 5)],
        checkpoint_folder=folder / "checkpoint",
        log_path=folder / "training.jsonl",
        settings=ADAPTED,
        **options,
    )


def test_an_interrupted_training_of_adapters_ends_bit_identical(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """And its checkpoints hold no weight of the decoder."""
    whole = Encoder.load(pico_folder)
    run(whole, pico_texts, tmp_path / "whole")

    def cut(record) -> None:
        if record.step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(Encoder.load(pico_folder), pico_texts, tmp_path / "cut", on_step=cut)
    checkpoint = load_latest(tmp_path / "cut" / "checkpoint" / "steps")
    assert checkpoint is not None
    weights = [name for name in checkpoint.tensors() if name.startswith("weights.")]
    assert len(weights) == 3 * 3 * 2
    assert all("lora_" in name for name in weights)
    resumed = Encoder.load(pico_folder)
    run(resumed, pico_texts, tmp_path / "cut")
    logs = [(tmp_path / name / "training.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_an_unknown_layer_is_named_with_those_there_are(pico_encoder: Encoder) -> None:
    wrong = dataclasses.replace(LORA, target_modules=("q_proj", "query"))
    with pytest.raises(ValueError, match=r"names query, but .* down_proj, gate_proj, k_proj"):
        Adapters(pico_encoder, wrong, seed=1)
