"""Multi-layer pooling against its published code written plainly, and as part of an encoder."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from model.encoder.encoder import Encoder, collate
from model.encoder.pooling.build import LatentSize, PoolingSettings
from model.encoder.pooling.multilayer import MultilayerPooling, SentenceMultilayerPooling
from model.encoder.pooling.pooling_block import save_block
from model.merging.probe import parameters_by_tensor
from model.merging.weights import SavedWeights
from model.pruning import prune_encoder
from model.training.devices.grad_cache import cached_backward, plain_backward
from model.training.devices.team import Team

SIZE: dict[str, Any] = {
    "hidden_size": 8,
    "num_layers": 4,
    "num_latents": 5,
    "num_heads": 3,
    "head_dim": 2,
    "expansion": 2,
}
TOKENS: list[Literal["mean", "last"]] = ["mean", "last"]
LATENT = LatentSize(num_latents=6, num_heads=2, head_dim=4, expansion=2)


@pytest.fixture(name="layer_BLD")
def make_layers() -> Tensor:
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))


def block_of(tokens: Literal["mean", "last"] = "mean") -> MultilayerPooling:
    """Norms and biases away from their neutral start."""
    block = MultilayerPooling(**SIZE, tokens=tokens)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return block


def encoder_of(source: Encoder, tokens: Literal["mean", "last"], **settings: Any) -> Encoder:
    pooling = PoolingSettings(kind="multilayer", latent=LATENT, layer_tokens=tokens, **settings)
    return Encoder(source.backbone, source.tokenizer, pooling, max_length_tokens=64).eval()


def tang_yang(block: MultilayerPooling, layer_LD: Tensor) -> Tensor:
    """MultiLayersTrainablePooling.py, latent by latent and head by head, in float64."""
    weight = {name: value.double() for name, value in block.state_dict().items()}

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        scaled = centred / torch.sqrt(centred.square().mean() + 1e-5)
        return scaled * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    heads, size, inner = SIZE["num_heads"], SIZE["head_dim"], SIZE["num_heads"] * SIZE["head_dim"]
    placed = layer_LD.double() + weight["layers"]
    keys = [weight["to_key_value.weight"][:inner] @ norm("layer_norm", x) for x in placed]
    values = [weight["to_key_value.weight"][inner:] @ norm("layer_norm", x) for x in placed]
    outputs = []
    for latent in weight["latents"]:
        query = weight["to_query.weight"] @ norm("latent_norm", latent)
        attended = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(size)
            share = logits.exp() / logits.exp().sum()
            attended.append(sum(share[at] * values[at][part] for at in range(len(placed))))
        x = weight["to_out.weight"] @ torch.cat(attended) + latent
        hidden = weight["feed_in.weight"] @ norm("feed_norm", x) + weight["feed_in.bias"]
        value, gate = hidden.chunk(2)
        gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        outputs.append(weight["feed_out.weight"] @ (value * gelu) + weight["feed_out.bias"] + x)
    return torch.stack(outputs).mean(dim=0)


def test_it_follows_the_code_of_its_paper(layer_BLD: Tensor) -> None:
    block = block_of()
    with torch.no_grad():
        pooled_BD = block(layer_BLD)
        for row, layer_LD in enumerate(layer_BLD):
            np.testing.assert_allclose(pooled_BD[row], tang_yang(block, layer_LD), atol=1e-5)


def test_latents_are_the_queries_and_layers_are_looked_up(layer_BLD: Tensor) -> None:
    """Among equal layers a lookup has no choice; were layers the queries, they would still ask."""
    block = block_of()
    equal_BLD = layer_BLD[:, :1].expand(-1, 4, -1)
    with torch.no_grad():
        before = block(layer_BLD)
        block.layers.zero_()
        chosen = block(equal_BLD)
        block.to_query.weight.mul_(-3.0)
        torch.testing.assert_close(block(equal_BLD), chosen)
        assert (block(layer_BLD) - before).abs().max() > 1e-3


def test_a_layer_is_the_mean_or_the_last_of_its_pooled_tokens() -> None:
    states_BTD = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    mask_BT = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    mean_BD = block_of("mean").pool_tokens(states_BTD, mask_BT)
    torch.testing.assert_close(mean_BD[0], (states_BTD[0, 1] + states_BTD[0, 2]) / 2)
    torch.testing.assert_close(mean_BD[1], states_BTD[1].mean(dim=0))
    last_BD = block_of("last").pool_tokens(states_BTD, mask_BT)
    assert torch.equal(last_BD, states_BTD[[0, 1], [2, 4]])


def test_it_learns_through_every_weight(layer_BLD: Tensor) -> None:
    block = block_of()
    block(layer_BLD).square().sum().backward()
    for name, weight in block.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_blocks_start_alike_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (MultilayerPooling(**SIZE, tokens="mean") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_it_runs_in_bf16(layer_BLD: Tensor) -> None:
    block = block_of()
    with torch.no_grad():
        full = block(layer_BLD)
        half = block.to(torch.bfloat16)(layer_BLD.bfloat16())
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(full, half.float()).min() > 0.99


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_published_block_is_the_same_block(
    tokens: Literal["mean", "last"], tmp_path: Path
) -> None:
    block = block_of(tokens)
    save_block(block, tmp_path / "a", include_prompt=False)
    SentenceMultilayerPooling.load(str(tmp_path / "a")).save(str(tmp_path / "b"))
    loaded = SentenceMultilayerPooling.load(str(tmp_path / "b"))
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(5, 2, 6, 8, generator=generator)  # input and four layers
    mask_BT = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    text_BT = mask_BT.clone()
    text_BT[0, :2] = 0  # the prompt of two tokens is all the second text has
    features = {"all_layer_embeddings": tuple(states), "attention_mask": mask_BT}
    with torch.no_grad():
        for prompt, pooled in ((0, mask_BT), (2, text_BT)):
            theirs = loaded(dict(features, prompt_length=prompt))["sentence_embedding"]
            layers = [block.pool_tokens(each, pooled) for each in states[1:]]
            assert torch.equal(theirs, block(torch.stack(layers, dim=1)))
    with pytest.raises(ValueError, match="output_hidden_states"):
        loaded({"token_embeddings": states[0], "attention_mask": mask_BT})


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("pool_prompt", [True, False])
def test_an_encoder_pools_the_output_of_every_block(
    pico_encoder: Encoder,
    pico_texts: list[str],
    tokens: Literal["mean", "last"],
    pool_prompt: bool,
) -> None:
    encoder = encoder_of(pico_encoder, tokens, pool_prompt=pool_prompt)
    assert encoder.is_packed
    items = encoder.tokenize(pico_texts[:3], prompts=["Вопрос:\n"] * 3)
    with torch.inference_mode():
        packed = encoder.embed(items)
        padded = encoder(*collate(items, pad_id=0, pool_prompt=pool_prompt, device="cpu"))
        for item, ours_D, padded_D in zip(items, packed, padded, strict=True):
            output = encoder.backbone(
                input_ids=torch.tensor([item.ids]), output_hidden_states=True, use_cache=False
            )
            start = 0 if pool_prompt else item.prompt_tokens
            layers = [states[0, start:] for states in output.hidden_states[1:]]
            pooled = [layer[-1] if tokens == "last" else layer.mean(dim=0) for layer in layers]
            expected = F.normalize(encoder.pooling(torch.stack(pooled)[None])[0], dim=0)
            torch.testing.assert_close(ours_D, expected, atol=2e-6, rtol=1e-4)
            torch.testing.assert_close(padded_D, expected, atol=2e-6, rtol=1e-4)
    assert all(item.ids[-1] == encoder.tokenizer.eos_token_id for item in items)


def test_bf16_stays_close_and_the_block_stays_float32(
    pico_encoder: Encoder, pico_texts: list[str]
) -> None:
    encoder = encoder_of(pico_encoder, "mean")
    seen: list[torch.dtype] = []
    encoder.pooling.register_forward_hook(lambda _, args, __: seen.append(args[0].dtype))
    full = encoder.encode(pico_texts, batch_tokens=100)
    half = encoder.encode(pico_texts, batch_tokens=100, precision="bf16")
    assert set(seen) == {torch.float32}
    assert not np.array_equal(full, half)
    assert (full * half).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_gradient_is_the_plain_one(
    pico_encoder: Encoder, pico_texts: list[str], precision: str
) -> None:
    encoder = encoder_of(pico_encoder, "mean")
    items = encoder.tokenize(pico_texts)
    parts = [[0, 3, 4], [1], [2, 5, 6, 7], [8, 9, 10, 11]]
    order = [text for part in parts for text in part]

    def embed(part: list[int]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return encoder.embed([items[text] for text in part])

    def loss_of(embedding_MD: Tensor, _: Team) -> tuple[Tensor, Tensor]:
        leaf_MD = embedding_MD.detach().requires_grad_()
        loss = (leaf_MD @ leaf_MD.T).pow(3).sum()
        return loss.detach(), torch.autograd.grad(loss, [leaf_MD])[0]

    found = []
    for backward in (plain_backward, cached_backward):
        encoder.zero_grad()
        loss = backward(embed, parts, len(order), loss_of, Team())
        gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
        found.append((float(loss), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-3 * scale)


def test_pruning_forgets_the_vectors_of_the_blocks_that_go(
    pico_encoder: Encoder, pico_texts: list[str], tmp_path: Path
) -> None:
    encoder = encoder_of(pico_encoder, "mean")
    before = encoder.pooling.layers.detach().clone()
    prune_encoder(encoder, [1])
    assert torch.equal(encoder.pooling.layers, before[[0, 2]])
    encoder.save(tmp_path)
    ours = encoder.encode(pico_texts, batch_tokens=100)
    loaded = Encoder.load(tmp_path).encode(pico_texts, batch_tokens=100)
    np.testing.assert_array_equal(loaded, ours)


def test_merging_sees_every_weight_of_the_block(pico_encoder: Encoder, tmp_path: Path) -> None:
    encoder = encoder_of(pico_encoder, "mean")
    encoder.save(tmp_path)
    assert sorted(parameters_by_tensor(encoder)) == SavedWeights(tmp_path).names
    assert load_file(tmp_path / "1_MultilayerPooling" / "model.safetensors").keys() == set(
        encoder.pooling.state_dict()
    )
