"""Checkpoints: exact, atomic, and an optimizer that goes on as if never stopped."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import (
    STATE_FILE,
    TENSORS_FILE,
    load_latest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(3, 5),
        "half": torch.randn(4).bfloat16(),
        "scalar": torch.tensor(7.0),
        "random": torch.get_rng_state(),
    }
    state = {"losses": [0.1 + 0.2, 1e-300], "note": "кириллица"}
    save_checkpoint(tmp_path, step=3, tensors=tensors, state=state)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 3
    assert loaded.state == state
    got = loaded.tensors()
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    assert got["half"].dtype == torch.bfloat16


def test_only_the_newest_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step=step, tensors={"a": torch.tensor(step)}, state={}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.tensors()["a"].item() == 10


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", ["tensors cut", "state cut", "tensors gone", "state gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step=step, tensors={"a": torch.ones(100)}, state={"step": step})
    name = TENSORS_FILE if damage.startswith("tensors") else STATE_FILE
    victim = tmp_path / "step-00000002" / name
    if damage.endswith("cut"):
        victim.write_bytes(victim.read_bytes()[:-5])
    else:
        victim.unlink()
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.state == {"step": 1}


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".partial-1"
    stale.mkdir()
    (stale / STATE_FILE).write_text("{")
    assert load_latest(tmp_path) is None
    save_checkpoint(tmp_path, step=1, tensors={}, state={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_same_step_can_be_written_twice(tmp_path: Path) -> None:
    for value in (1, 2):
        save_checkpoint(tmp_path, step=5, tensors={}, state={"value": value})
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.state == {"value": 2}


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    return model, torch.optim.AdamW(groups, lr=0.1)


def test_a_restored_optimizer_takes_the_same_steps(tmp_path: Path) -> None:
    unbroken, optimizer = _model()
    _steps(unbroken, optimizer, 0, 3)
    tensors = {**unbroken.state_dict(), **optimizer_tensors(optimizer)}
    save_checkpoint(tmp_path, step=3, tensors=tensors, state={})
    _steps(unbroken, optimizer, 3, 6)

    resumed, second = _model()
    loaded = load_latest(tmp_path)
    assert loaded is not None
    resumed.load_state_dict({name: loaded.tensors()[name] for name in resumed.state_dict()})
    restore_optimizer(second, loaded.tensors())
    _steps(resumed, second, 3, 6)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_an_optimizer_with_other_state_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([weight])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match="no tensor"):
        optimizer_tensors(optimizer)
