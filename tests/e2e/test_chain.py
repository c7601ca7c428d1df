"""The whole chain on the pico profile: `dvc repro` and the flow, and what a change re-runs."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
import yaml

from tests.e2e.clone import ROOT, Clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TIMED_OUTPUTS = {"artifacts/report/index.html"}


def changed_stages(clone: Clone) -> set[str]:
    """Stages whose own inputs differ from the last run, without those that merely follow."""
    status = json.loads(clone.run("dvc", "status", "--json").stdout)
    return {stage for stage in status if not stage.endswith(".dvc")}


def test_a_second_repro_runs_nothing(reproduced: Clone) -> None:
    before = reproduced.lock()
    done = reproduced.run("dvc", "repro")
    assert "Running stage" not in done.stdout + done.stderr
    assert reproduced.lock() == before
    assert changed_stages(reproduced) == set()


def test_every_declared_stage_ran_and_left_its_metrics(reproduced: Clone) -> None:
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    ran = {stage.split("@")[0] for stage in reproduced.lock()}
    assert ran == set(declared)
    metrics = json.loads(reproduced.run("dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert all("error" not in entry for entry in files.values())
    assert "artifacts/evaluate/final/metrics.json" in files


def test_the_flow_writes_the_same_bytes_as_repro(
    reproduced: Clone, retrained: tuple[Clone, str]
) -> None:
    """Same inputs, same bytes on a CPU, whoever starts the stages; times are the one exception."""
    clone, _ = retrained
    by_flow, by_repro = clone.lock(), reproduced.lock()
    assert by_flow.keys() == by_repro.keys()
    differing = {
        path
        for stage, outs in by_repro.items()
        for path, digest in outs.items()
        if by_flow[stage][path] != digest
    }
    assert differing <= TIMED_OUTPUTS


def test_the_flow_ends_with_the_report_and_lines_that_load_the_model(
    retrained: tuple[Clone, str],
) -> None:
    clone, output = retrained
    assert "artifacts/report/index.html" in output
    printed = re.findall(
        r"^ +(from sentence_transformers .*|model = .*|print\(model.*)$", output, re.M
    )
    assert len(printed) == 3, "the run must end with three lines of Python that load the model"
    loaded = clone.run("python", "-W", "ignore", "-c", "\n".join(printed))
    assert "(1, 32)" in loaded.stdout


def test_a_second_run_of_the_flow_has_nothing_to_do_and_publishes_nothing(
    retrained: tuple[Clone, str],
) -> None:
    clone, _ = retrained
    again = clone.run("python", "-m", "flows.retrain")
    assert "every stage is up to date" in again.stdout
    versions = list((clone.root / "store").glob("registry/*/versions/*/manifest.json"))
    assert len(versions) == 1, "the same model must be published once"


def test_a_tagged_version_is_whole_in_another_clone(
    retrained: tuple[Clone, str], tmp_path: Path
) -> None:
    """`git checkout TAG && dvc pull && dvc repro`, as README has it."""
    origin, _ = retrained
    [manifest] = (origin.root / "store").glob("registry/*/versions/*/manifest.json")
    tag = manifest.parent.name
    origin.run("git", "add", "-A")
    origin.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", tag)
    origin.run("git", "tag", tag)
    other = Clone(tmp_path / "other")
    origin.run("git", "clone", "-q", "--branch", tag, str(origin.root), str(other.root))
    other.run("dvc", "remote", "modify", "--local", "store", "url", str(origin.root / "store/dvc"))
    other.run("dvc", "pull")
    done = other.run("dvc", "repro")
    assert "Running stage" not in done.stdout + done.stderr
    assert changed_stages(other) == set()
    assert other.lock() == origin.lock()
    weights = Path("artifacts/merge/model/model.safetensors")
    assert (other.root / weights).read_bytes() == (origin.root / weights).read_bytes()


def test_an_experiment_is_run_compared_and_drawn(reproduced: Clone, tmp_path: Path) -> None:
    """`dvc exp run -S`, `dvc metrics diff` and `dvc plots show`, as README has them."""
    clone = Clone(tmp_path / "experiment")
    shutil.copytree(reproduced.root, clone.root, symlinks=True)
    clone.run("git", "add", "-A")
    clone.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "reproduced")
    before = reproduced.lock()
    # one stage and those before it: the others take minutes and show nothing more
    clone.run("dvc", "exp", "run", "-S", "prune.fraction=0", "pretrain")
    changed = {stage for stage, outs in clone.lock().items() if outs != before[stage]}
    assert changed == {"prune", "pretrain"}
    found = json.loads(clone.run("dvc", "metrics", "diff", "--json").stdout)
    blocks = found["artifacts/prune/metrics.json"]["blocks_after"]
    assert blocks["new"] > blocks["old"]
    assert "artifacts/pretrain/metrics.json" in found
    page = clone.run("dvc", "plots", "show").stdout.strip().removeprefix("file://")
    html = Path(page).read_text(encoding="utf-8")
    for stage in ("backbone", "pretrain", "finetune"):
        assert f"artifacts/{stage}/curves.csv" in html


@pytest.fixture
def restored(reproduced: Clone) -> Iterator[Clone]:
    """The reproduced clone; params.yaml and the code are put back when the test ends."""
    yield reproduced
    reproduced.run("git", "checkout", "-q", "--", "params.yaml", "model", "tasks")


def test_a_changed_merge_method_re_runs_only_merge_and_what_follows(restored: Clone) -> None:
    restored.set_param("merge.method", "uniform_soup")
    changed = changed_stages(restored)
    followers = _reached("merge", _edges(restored.run("dvc", "dag", "--dot").stdout))
    assert followers == {"evaluate@final", "gate", "report"}
    assert "merge" in changed
    assert changed <= {"merge"} | followers


def test_a_changed_ingest_value_re_runs_every_stage(restored: Clone) -> None:
    restored.set_param("ingest.seed", 7)
    assert "ingest" in changed_stages(restored)
    children = _edges(restored.run("dvc", "dag", "--dot").stdout)
    assert _reached("ingest", children) | {"ingest"} == set(restored.lock())


@pytest.mark.parametrize(
    "module",
    [
        "model.losses.contrastive",
        "model.pruning",
        "model.encoder.encoder",
        "model.merging.uniform_soup",
    ],
)
def test_an_edited_file_re_runs_exactly_the_stages_that_import_it(
    restored: Clone, module: str
) -> None:
    path = restored.root / (module.replace(".", "/") + ".py")
    path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    changed = {stage.split("@")[0] for stage in changed_stages(restored)}
    assert changed == _importers(module)


def _importers(module: str) -> set[str]:
    """Stages whose entry point imports `module`, directly or through others."""
    graph = grimp.build_graph("tasks", "model")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    importers = set()
    for stage, entry in stages.items():
        command = entry.get("do", entry)["cmd"]
        task = command.split()[2]
        entry_points = {task, *graph.find_descendants(task)}
        if any(graph.find_shortest_chain(point, module) for point in entry_points):
            importers.add(stage)
    return importers


def _edges(dot: str) -> dict[str, set[str]]:
    """Child stages of each stage in `dvc dag --dot`."""
    children: dict[str, set[str]] = {}
    for parent, child in re.findall(r'"([^"]+)" -> "([^"]+)"', dot):
        children.setdefault(parent, set()).add(child)
    return children


def _reached(start: str, children: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    queue = [start]
    while queue:
        for child in children.get(queue.pop(), set()) - found:
            found.add(child)
            queue.append(child)
    return found
