"""The quality gate: which candidates pass, and what is said of those that do not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.contract.stage import StageError
from tasks.gate import Scores, compare_tasks, decide, judge_candidate
from tasks.params.evaluation import Gate
from tasks.params.load import Params, load_params

ROOT = Path(__file__).parents[2]
RULES = Gate(candidate="final", min_mean_gain=0.01, max_task_loss=0.02, must_beat=["random"])


def scores(name: str, **tasks: float) -> Scores:
    return Scores(name, sum(tasks.values()) / len(tasks), tasks)


def failures(candidate: Scores, champion: Scores | None, rivals: list[Scores]) -> list[str]:
    return decide(RULES, candidate, champion, rivals)[0]


def test_a_better_candidate_passes_and_every_rule_is_said() -> None:
    failed, passed = decide(
        RULES,
        scores("final", STS=0.6, Retrieval=0.5),
        scores("v0001-ab", STS=0.58, Retrieval=0.5),
        [scores("random", STS=0.1, Retrieval=0.0)],
    )
    assert failed == []
    assert passed == [
        "The mean 0.5500 of final exceeds the mean 0.0500 of random.",
        "The mean changed by +0.0100 against v0001-ab (0.5400 to 0.5500); "
        "at least +0.0100 is asked.",
        "No task lost more than 0.0200 against v0001-ab.",
    ]


def test_a_gain_of_exactly_the_bound_passes_in_spite_of_rounding() -> None:
    """0.57 - 0.56 is 0.0099999999999998979 in binary."""
    assert 0.57 - 0.56 < 0.01
    assert failures(scores("final", STS=0.57), scores("v1", STS=0.56), []) == []


def test_a_smaller_gain_fails() -> None:
    (reason,) = failures(scores("final", STS=0.569), scores("v1", STS=0.56), [])
    assert reason.startswith("The mean changed by +0.0090 against v1")


def test_one_task_that_lost_too_much_fails_in_spite_of_a_better_mean() -> None:
    candidate = scores("final", STS=0.9, Retrieval=0.47, NLI=0.48)
    (reason,) = failures(candidate, scores("v1", STS=0.5, Retrieval=0.5, NLI=0.5), [])
    assert reason == (
        "Retrieval lost 0.0300 against v1 (0.5000 to 0.4700); at most 0.0200 is allowed."
    )


def test_the_candidate_must_exceed_a_rung_even_without_a_champion() -> None:
    (reason,) = failures(scores("final", STS=0.5), None, [scores("random", STS=0.5)])
    assert reason == "The mean 0.5000 of final must exceed the mean 0.5000 of random."


def test_the_first_candidate_needs_no_champion() -> None:
    failed, passed = decide(RULES, scores("final", STS=0.5), None, [])
    assert failed == []
    assert passed == [
        "No other model was published when this was judged: there was no champion to beat."
    ]


def test_other_tasks_than_the_champions_fail_and_are_named() -> None:
    (reason,) = failures(scores("final", STS=0.9, NLI=0.9), scores("v1", STS=0.1, Old=0.1), [])
    assert "only v1 has Old; only final has NLI." in reason


def test_other_tasks_than_a_rungs_fail_and_are_named() -> None:
    (reason,) = failures(scores("final", STS=0.9), None, [scores("random", STS=0.1, NLI=0.1)])
    assert "only random has NLI." in reason


def test_the_table_has_a_row_per_task_of_either() -> None:
    rows = compare_tasks(scores("final", STS=0.6, New=0.1), scores("v1", STS=0.5, Old=0.2))
    assert rows == [
        {"task": "New", "candidate": 0.1, "champion": None, "change": None},
        {"task": "Old", "candidate": None, "champion": 0.2, "change": None},
        {"task": "STS", "candidate": 0.6, "champion": 0.5, "change": 0.1},
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished evaluation: the final model at 0.6, all other rungs at 0.1, nothing published."""
    monkeypatch.chdir(tmp_path)
    for rung in ("random", "backbone", "final"):
        write(f"artifacts/evaluate/{rung}/scores.json", {"tasks": {"STS": 0.1}, "mean": 0.1})
    write("artifacts/evaluate/final/scores.json", {"tasks": {"STS": 0.6}, "mean": 0.6})
    write("champion.json", {"version": None, "fingerprint": None, "mean": None, "scores": {}})
    write("artifacts/merge/model/config.json", {})
    return tmp_path


@pytest.fixture
def params() -> Params:
    loaded = load_params(ROOT / "infra/profiles/pico.yaml")
    gate = RULES.model_copy(update={"must_beat": ["random", "backbone"]})
    return loaded.model_copy(update={"gate": gate})


def write(path: str, content: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))


def decision() -> dict[str, Any]:
    return json.loads(Path("artifacts/gate/decision.json").read_text())


def test_the_stage_writes_a_decision_and_metrics(workplace: Path, params: Params) -> None:
    judge_candidate(params)
    assert decision()["publish"] is True
    assert decision()["must_beat"] == {"random": 0.1, "backbone": 0.1}
    metrics = json.loads(Path("artifacts/gate/metrics.json").read_text())
    assert metrics == {"publish": "yes", "mean": 0.6}


def test_a_rejection_is_written_not_raised(workplace: Path, params: Params) -> None:
    champion = {"version": "v0001-ab", "fingerprint": "ab", "mean": 0.8, "scores": {"STS": 0.8}}
    write("champion.json", champion)
    judge_candidate(params)
    assert decision()["publish"] is False
    assert decision()["champion"] == {"version": "v0001-ab", "mean": 0.8}
    assert len(decision()["reasons"]) == 2
    metrics = json.loads(Path("artifacts/gate/metrics.json").read_text())
    assert metrics["publish"] == "no"
    assert metrics["worst_task_change"] == pytest.approx(-0.2)


def test_equal_inputs_give_equal_bytes(workplace: Path, params: Params) -> None:
    written = []
    for _ in range(2):
        judge_candidate(params)
        written.append([path.read_bytes() for path in sorted(Path("artifacts/gate").iterdir())])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": {"STS": None}, "mean": 0.5}, "holds no mean and scores per task"),
        ({"mean": 0.5}, "holds no mean and scores per task"),
        ({"tasks": {}, "mean": 0.5}, "no finite score for any task"),
        ({"tasks": {"STS": float("nan")}, "mean": 0.5}, r"no finite score for \['STS'\]"),
    ],
)
def test_unusable_scores_are_an_error(
    workplace: Path, params: Params, content: dict[str, Any], message: str
) -> None:
    write("artifacts/evaluate/final/scores.json", content)
    with pytest.raises(StageError, match=message):
        judge_candidate(params)
    assert not Path("artifacts/gate").exists()


def test_missing_scores_are_an_error(workplace: Path, params: Params) -> None:
    Path("artifacts/evaluate/random/scores.json").unlink()
    with pytest.raises(StageError, match=r"random/scores\.json does not exist: run the stage"):
        judge_candidate(params)
