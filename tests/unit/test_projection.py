"""The projection after pooling: its start, its place, its folder, and what follows its size."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from model.encoder.encoder import Encoder
from model.encoder.pooling.build import LatentSize, PoolingSettings
from model.encoder.pooling.projection import build_projection
from model.losses.matryoshka import matryoshka_sizes
from model.merging.probe import parameters_by_tensor
from model.merging.uniform_soup import uniform_soup
from model.merging.weights import SavedWeights, write_merged

LATENT = LatentSize(num_latents=6, num_heads=2, head_dim=4, expansion=2)


def projected(source: Encoder, size: int, kind: str = "mean") -> Encoder:
    settings = PoolingSettings(kind=kind, latent=LATENT, layer_tokens="mean", projection=size)
    return Encoder(source.backbone, source.tokenizer, settings, max_length_tokens=64).eval()


def test_projections_start_alike_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (build_projection(16, 24) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, second.weight)
    assert first.bias is None
    assert first.weight.std() > 0.1


@pytest.mark.parametrize("size", [12, 48])
def test_vectors_are_projected_before_they_are_normalised(
    pico_encoder: Encoder, pico_texts: list[str], size: int
) -> None:
    encoder = projected(pico_encoder, size)
    assert encoder.embedding_size == size
    states = pico_encoder.token_states(pico_encoder.tokenize(pico_texts))
    pooled = torch.stack([states_TD.mean(dim=0) for states_TD in states]).detach().double().numpy()
    expected = pooled @ encoder.projection.weight.detach().double().numpy().T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = encoder.encode(pico_texts, batch_tokens=60)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.usefixtures("remote_code")
@pytest.mark.parametrize("kind", ["mean", "last", "latent", "multilayer"])
def test_sentence_transformers_gives_the_same_vectors(
    pico_encoder: Encoder,
    pico_texts: list[str],
    tmp_path: Path,
    kind: str,
) -> None:
    encoder = projected(pico_encoder, 48, kind)
    with torch.no_grad():
        encoder.projection.weight.add_(0.1)
    encoder.save(tmp_path / "model")
    ours = encoder.encode(pico_texts, batch_tokens=100)
    loaded = Encoder.load(tmp_path / "model").encode(pico_texts, batch_tokens=100)
    np.testing.assert_array_equal(loaded, ours)
    theirs = SentenceTransformer(
        str(tmp_path / "model"), device="cpu", trust_remote_code=kind in {"latent", "multilayer"}
    )
    assert theirs.get_embedding_dimension() == 48
    np.testing.assert_allclose(theirs.encode(pico_texts, batch_size=5), ours, atol=1e-5)


def test_settings_survive_json() -> None:
    settings = PoolingSettings(kind="mean", projection=12)
    assert PoolingSettings.from_json(settings.to_json()) == settings
    plain = dataclasses.replace(settings, projection=None)
    assert plain.to_json().keys() == {"kind", "pool_prompt", "latent"}
    assert PoolingSettings.from_json(plain.to_json()) == plain


def test_matryoshka_sizes_are_prefixes_of_the_projection(pico_encoder: Encoder) -> None:
    encoder = projected(pico_encoder, 48)
    assert matryoshka_sizes(encoder.embedding_size, [8, 40]) == [48, 40, 8]
    with pytest.raises(ValueError, match="exceeds the embedding size 12"):
        matryoshka_sizes(projected(pico_encoder, 12).embedding_size, [16])


def test_merging_averages_the_projections(pico_encoder: Encoder, tmp_path: Path) -> None:
    first, second = (projected(pico_encoder, 12) for _ in range(2))
    with torch.no_grad():
        second.projection.weight.add_(1.0)
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    assert sorted(parameters_by_tensor(first)) == SavedWeights(tmp_path / "a").names
    soup = uniform_soup([SavedWeights(tmp_path / name) for name in ("a", "b")])
    write_merged(tmp_path / "a", tmp_path / "soup", soup)
    merged = load_file(tmp_path / "soup" / "2_Dense" / "model.safetensors")["linear.weight"]
    torch.testing.assert_close(merged, first.projection.weight.detach() + 0.5)
