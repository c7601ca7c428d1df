"""Self Positioning against the formulas of the paper, functional_call and finite differences."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from model.encoder.encoder import Encoder
from model.merging import self_positioning
from model.merging.probe import Probe, ProbeSettings, parameters_by_tensor
from model.merging.self_positioning import fold, search_position
from model.merging.task_vectors import TaskVectors
from model.merging.weights import SavedWeights
from model.training.settings import TrainingSource


def paper_fold(vectors: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """arXiv:2410.15035: fold left, the running weight is the mean of the weights so far."""
    running = vectors[0]
    for k in range(1, len(vectors)):
        before, own = sum(weights[:k]) / k, weights[k]
        t = own / (before + own)
        norms = np.linalg.norm(running) * np.linalg.norm(vectors[k])
        alpha = math.acos(float(running @ vectors[k]) / norms)
        running = (
            math.sin((1 - t) * alpha) * running + math.sin(t * alpha) * vectors[k]
        ) / math.sin(alpha)
    return running


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_fold_is_that_of_the_paper(count: int):
    rng = np.random.default_rng(count)
    vectors = [rng.normal(size=40) * rng.uniform(0.5, 2) + 0.3 for _ in range(count)]
    weights = rng.uniform(0.2, 3, size=count).tolist()
    stacked = torch.from_numpy(np.stack(vectors))
    coefficients = fold(stacked @ stacked.T, torch.tensor(weights, dtype=torch.float64))
    assert np.allclose((coefficients @ stacked).numpy(), paper_fold(vectors, weights), atol=1e-12)


class Toy(nn.Module):
    """Two tensors and a loss that is no quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.tanh(features @ self.w + self.b).square().sum(1).exp().mean()


@pytest.fixture
def toy_folders(tmp_path: Path) -> list[SavedWeights]:
    """A base and three variants in float64."""
    generator = torch.Generator().manual_seed(7)
    folders = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
            for name, shape in (("w", (4, 3)), ("b", (3,)))
        }
        save_file(tensors, folder / "model.safetensors")
        folders.append(SavedWeights(folder))
    return folders


FEATURES = torch.randn(6, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def search_toy(folders: list[SavedWeights], *, steps: int, shift: float = 0.1, mu: float = 0.1):
    toy = Toy()

    def backward(step: int) -> float:
        loss = toy(FEATURES + shift * step)
        loss.backward()
        return loss.item()

    return search_position(
        dict(toy.named_parameters()),
        TaskVectors(folders[0], folders[1:]),
        backward,
        steps=steps,
        learning_rate=0.05,
        size_penalty=mu,
    )


def objective(folders: list[SavedWeights], raw: torch.Tensor, step: int, mu: float) -> torch.Tensor:
    """The searched function written the plain way: all task vectors at once, functional_call."""
    scalars = nn.functional.softplus(raw) + 1e-8
    base = folders[0]
    vectors = [
        {name: folder.tensor(name) - base.tensor(name) for name in base.names}
        for folder in folders[1:]
    ]
    flat = torch.stack([torch.cat([v[name].flatten() for name in base.names]) for v in vectors])
    coefficients = scalars[-1] * fold(flat @ flat.T, scalars[:-1])
    weights = {
        name: base.tensor(name)
        + sum(c * vector[name] for c, vector in zip(coefficients, vectors, strict=True))
        for name in base.names
    }
    loss = functional_call(Toy(), weights, (FEATURES + 0.1 * step,))
    return loss + mu * scalars[-1]


def test_the_search_walks_as_adam_on_the_whole_graph_does(toy_folders):
    """Each step's gradient is right: the merged graph over all task vectors gives the same walk."""
    raw = torch.full((4,), math.log(math.e - 1), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for step in range(6):
        optimizer.zero_grad()
        objective(toy_folders, raw, step, mu=0.1).backward()
        optimizer.step()
    scalars = nn.functional.softplus(raw.detach()) + 1e-8
    found = search_toy(toy_folders, steps=6)
    assert [*found.weights, found.length] == pytest.approx(scalars.tolist(), rel=1e-9)


def test_the_gradient_of_the_scalars_equals_finite_differences(
    toy_folders, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(closure)

    monkeypatch.setattr(self_positioning.torch.optim, "Adam", Recorder)
    search_toy(toy_folders, steps=1)
    raw = torch.full((4,), math.log(math.e - 1), dtype=torch.float64)
    for number in range(4):
        change = torch.zeros(4, dtype=torch.float64)
        change[number] = 1e-5
        ahead, behind = (objective(toy_folders, raw + s * change, 0, 0.1) for s in (1, -1))
        assert float(seen[0][number]) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)


def test_one_variant_at_length_one_is_that_variant(toy_folders):
    base, variant = toy_folders[:2]
    found = search_toy([base, variant], steps=0)
    assert found.length == pytest.approx(1.0)
    merged = TaskVectors(base, [variant]).at(found.coefficients)
    for name in base.names:
        assert torch.allclose(merged(name), variant.tensor(name), atol=1e-7)


def test_the_search_lowers_the_loss(toy_folders):
    found = search_toy(toy_folders, steps=40, mu=0.0, shift=0.0)
    assert found.losses[-1] < 0.95 * found.losses[0]
    assert min(found.weights) > 0
    assert found.length > 0


def test_a_larger_penalty_gives_a_shorter_vector(toy_folders):
    lengths = [search_toy(toy_folders, steps=30, mu=mu).length for mu in (0.0, 5.0)]
    assert lengths[1] < lengths[0]


def test_a_loss_that_is_not_finite_stops_the_search(toy_folders):
    toy = Toy()
    with pytest.raises(ValueError, match="the probe loss is nan at step 0"):
        search_position(
            dict(toy.named_parameters()),
            TaskVectors(toy_folders[0], toy_folders[1:]),
            lambda _: math.nan,
            steps=1,
            learning_rate=0.1,
            size_penalty=0.0,
        )


def test_parameters_that_are_no_tensors_of_the_folder_are_named(toy_folders):
    with pytest.raises(ValueError, match=r"differ: \['b'\]"):
        search_position(
            {"w": Toy().w},
            TaskVectors(toy_folders[0], toy_folders[1:]),
            lambda _: 0.0,
            steps=1,
            learning_rate=0.1,
            size_penalty=0.0,
        )


def source(name: str, task: str, rows: int = 8) -> TrainingSource:
    table = pa.table(
        {
            "id": [f"{name}{row}" for row in range(rows)],
            "query": [f"вопрос {row}" for row in range(rows)],
            "positives": [[f"ответ {row}"] for row in range(rows)],
            "negatives": [[f"другое {row}", f"иное {row}"] for row in range(rows)],
            "score": pa.array([0.5] * rows, pa.float32()),
        }
    )
    return TrainingSource(name, task, "Вопрос: ", "", table, 1.0)


SETTINGS = ProbeSettings(
    examples=12,
    batch_size=4,
    hard_negatives=1,
    loss="giga",
    temperature=0.05,
    max_length_tokens=32,
    micro_batch_tokens=4096,
    precision="fp32",
    seed=3,
)


def test_the_tensors_of_a_folder_are_the_parameters_of_its_encoder(pico_folder: Path):
    assert (
        sorted(parameters_by_tensor(Encoder.load(pico_folder))) == SavedWeights(pico_folder).names
    )


def test_probe_batches_depend_on_seed_and_step_alone(pico_encoder: Encoder, tmp_path: Path):
    sources = [source("a", "retrieval"), source("b", "classification")]
    probe = Probe(pico_encoder, sources, SETTINGS)
    forward = [probe.backward(step) for step in range(4)]
    assert [probe.backward(step) for step in (3, 2, 1, 0)] == forward[::-1]
    assert len(set(forward)) == 4


def test_the_probe_refuses_sources_that_are_all_graded(pico_encoder: Encoder, tmp_path: Path):
    with pytest.raises(ValueError, match="needs a task other than sts"):
        Probe(pico_encoder, [source("pairs", "sts")], SETTINGS)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(pico_encoder: Encoder, tmp_path: Path):
    gradients = []
    for tokens in (4096, 40):
        settings = ProbeSettings(**{**SETTINGS.__dict__, "micro_batch_tokens": tokens})
        pico_encoder.zero_grad()
        Probe(pico_encoder, [source("a", "retrieval")], settings).backward(0)
        gradients.append([p.grad.clone() for p in pico_encoder.backbone.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.linalg.norm(whole - parts) <= 1e-5 * torch.linalg.norm(whole)
