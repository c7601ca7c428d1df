"""The law of several processes: loss and gradients are those of one with the whole batch."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from model.training.devices.team import Team, TeamOutOfMemoryError
from model.training.step_log import read_records
from tests.unit.oom_worker import PLACES
from tests.unit.team_worker import Case, cases, measure_all
from tests.unit.teams import start_team
from tests.unit.test_trainer import table_of

pytestmark = pytest.mark.slow

CASES = list(cases())
Measured = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


def read(folder: Path) -> Measured:
    facts = json.loads((folder / "facts.json").read_text())
    return facts, load_file(folder / "gradients.safetensors")


@pytest.fixture(scope="module")
def alone(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """One process with the whole batch."""
    folder = tmp_path_factory.mktemp("alone")
    measure_all(pico_folder, folder)
    return read(folder)


@pytest.fixture(scope="module", params=[2, 3])
def together(
    request: pytest.FixtureRequest, pico_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    """Two or three processes over gloo, as torchrun starts them."""
    folder, size = tmp_path_factory.mktemp("team"), request.param
    processes = start_team(size, "tests.unit.team_worker", str(pico_folder), str(folder))
    assert [process.wait(900) for process in processes] == [0] * size
    return read(folder)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: "-".join(
    str(value) for value in [*CASES[number][:4], *CASES[number][6:]] if value != ""
))  # fmt: skip
def test_loss_and_gradients_are_those_of_one_process(
    number: int, alone: Measured, together: Measured
) -> None:
    facts, gradients = alone
    team_facts, team_gradients = together
    expected, got = dict(facts[number]), dict(team_facts[number])
    assert got.pop("losses") == pytest.approx(expected.pop("losses"), rel=1e-5, abs=1e-6)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    names = [name for name in gradients if name.startswith(f"{number}/")]
    assert names
    assert names == [name for name in team_gradients if name.startswith(f"{number}/")]
    largest = max(gradients[name].abs().max().item() for name in names)
    for name in names:
        difference = (team_gradients[name] - gradients[name]).abs().max().item()
        assert difference <= 1e-5 * max(1.0, largest), name


def test_the_cases_mask_by_text_and_by_score(alone: Measured) -> None:
    facts, _ = alone
    of_qwen3 = [found for case, found in zip(CASES, facts, strict=True) if case.loss == "qwen3"]
    assert any(found["masked_by_score"] > 0 for found in of_qwen3)
    retrieval = [f for case, f in zip(CASES, facts, strict=True) if case.task == "retrieval"]
    assert sum(found["masked_share"] > 0 for found in retrieval) > len(retrieval) / 2


def test_the_cases_have_adapters_and_remembered_documents(alone: Measured) -> None:
    facts, gradients = alone
    for number, case in enumerate(CASES):
        assert (facts[number]["memory_negatives"] > 1) == (case.form == "memory")
        names = [name for name in gradients if name.startswith(f"{number}/")]
        assert all("lora_" in name for name in names) == (case.form == "lora")


def test_a_team_goes_on_with_smaller_parts_when_one_process_is_out_of_memory(
    pico_folder: Path, pico_texts: list[str], tmp_path: Path
) -> None:
    """Process 1 gives up in its backward pass; both halve, and end with equal weights."""
    pq.write_table(table_of(pico_texts, [0, 1, 2, 3] * 5), tmp_path / "table.parquet")
    arguments = [str(pico_folder), str(tmp_path / "table.parquet"), str(tmp_path)]
    processes = start_team(2, "tests.unit.oom_worker", *arguments)
    assert [process.wait(200) for process in processes] == [0, 0]
    steps, weights = [], []
    for name in ("roomy", "small"):
        folder = tmp_path / name
        steps.append(read_records(folder / "training.jsonl"))
        weights.append([torch.load(folder / f"weights-{rank}.pt") for rank in (0, 1)])
    for name in PLACES:
        elsewhere = [torch.load(tmp_path / name / f"weights-{rank}.pt") for rank in (0, 1)]
        assert all(torch.equal(elsewhere[0][key], elsewhere[1][key]) for key in elsewhere[0]), name
        halved = [r.micro_batches for r in read_records(tmp_path / name / "training.jsonl")]
        assert sum(halved) > sum(record.micro_batches for record in steps[0]), name
    assert all((tmp_path / "optimiser" / f"given-up-{rank}").exists() for rank in (0, 1))
    assert {record.micro_batches for record in steps[0]} == {1}
    assert steps[1][-1].micro_batches > 1
    losses = [[record.loss for record in records] for records in steps]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    for name, tensor in weights[1][0].items():
        assert torch.equal(tensor, weights[1][1][name]), name


def test_a_process_out_of_memory_alone_does_not_try_again() -> None:
    """The others would wait for it in another collective, for ever."""
    team = Team()
    assert team.agrees_on(torch.OutOfMemoryError("simulated")), "nobody else is waiting"
    team.size = 2
    assert not team.agrees_on(torch.OutOfMemoryError("simulated"))
    assert team.agrees_on(TeamOutOfMemoryError("simulated"))


def test_every_term_has_the_same_gradient_with_and_without_grad_cache(alone: Measured) -> None:
    facts, gradients = alone
    numbers = {case: number for number, case in enumerate(CASES)}
    for plain, number in numbers.items():
        if plain.cached or not plain.extra:
            continue
        other = numbers[plain._replace(cached=True)]
        assert facts[other]["losses"] == pytest.approx(facts[number]["losses"], rel=1e-5, abs=1e-6)
        own = {name: g for name, g in gradients.items() if name.startswith(f"{number}/")}
        largest = max(gradient.abs().max().item() for gradient in own.values())
        for name, gradient in own.items():
            cached = gradients[f"{other}/{name.split('/', 1)[1]}"]
            assert (cached - gradient).abs().max().item() <= 1e-5 * max(1.0, largest), name


def test_the_cases_use_every_term_and_mask(alone: Measured) -> None:
    """A law that holds because nothing is there to break it would prove nothing."""
    facts = [found for case, found in zip(CASES, alone[0], strict=True) if case.extra]
    cases = [case for case in CASES if case.extra]
    terms = {name for found in facts for name, value in found["losses"].items() if value != 0}
    assert terms == {
        *("contrastive", "spread_out", "soft_labels", "triplet", "embeddings", "similarities"),
        "cosent",
    }
    for case, found in zip(cases, facts, strict=True):
        assert sum(found["losses"].values()) == pytest.approx(found["loss"], rel=1e-5)
        is_judged = case.extra in {"guide", "everything"}
        assert (found["masked_by_guide"] > 0) == (is_judged and case.task != "sts"), case
        is_labelled = case.extra in {"soft-labels", "everything"} and case.task != "sts"
        if is_labelled and case.negatives:
            assert 0 < found["soft_label_rows"] <= 9, "two rows have no scores"
        else:
            assert found["soft_label_rows"] == 0


class _Of(Team):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_text_has_one_process_and_tokens_are_spread_evenly(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths: list[Any] = torch.randint(5, 200, (97,), generator=generator).tolist()
    shares = [_Of(rank, size).texts(lengths) for rank in range(size)]
    assert sorted(text for share in shares for text in share) == list(range(97))
    tokens = [sum(lengths[text] for text in share) for share in shares]
    assert max(tokens) < 1.1 * min(tokens)


def test_fewer_texts_than_processes_is_an_error() -> None:
    with pytest.raises(ValueError, match="leaves none for process 2 of 3"):
        _Of(2, 3).texts([5, 7])


def test_a_case_is_what_its_name_says() -> None:
    assert Case("retrieval", "giga", 0, False, (32, 8), 4) in CASES
