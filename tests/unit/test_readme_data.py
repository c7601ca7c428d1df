"""What README says of data and experiments, typed in a checkout with our .gitignore."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.cli import main as dvc

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# of pygtrie, inside DVC
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that records data/ as ours does."""
    root = tmp_path / "checkout"
    (root / "data" / "train").mkdir(parents=True)
    (root / "data" / "train" / "a.csv").write_text("text\n")
    shutil.copyfile(ROOT / ".gitignore", root / ".gitignore")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    assert dvc(["init", "-q"]) == 0
    assert dvc(["add", "-q", "data"]) == 0
    return root


def commands(pattern: str) -> list[list[str]]:
    """The arguments of the DVC commands of README that match."""
    found = re.findall(rf"(?:`|    )dvc ({pattern}[^`#\n]*)", README)
    assert found, f"README has no dvc {pattern}"
    return [shlex.split(each) for each in found]


def test_changed_data_are_recorded_without_a_question(checkout: Path) -> None:
    (checkout / "data" / "train" / "a.csv").write_text("text\nmore\n")
    for command in commands("commit"):
        if command != ["commit"]:  # named in a sentence
            assert dvc(command) == 0, command


def test_data_are_imported_from_elsewhere(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a.csv").write_text("text\n")
    [(name, _, target)] = commands("import-url")
    assert dvc([name, "-q", str(tmp_path / "bucket"), target]) == 0
    [added] = re.findall(r"    git add (.*\.dvc .*)", README)
    subprocess.run(["git", "add", *added.split()], check=True)
    assert (checkout / target / "a.csv").exists()
    left = subprocess.run(
        ["git", "status", "--porcelain", target], check=True, capture_output=True, text=True
    )
    assert left.stdout == "", "git does not ignore the data"
    assert dvc(["status", "-q"]) == 0


STAGE = """
stages:
  one:
    cmd: mkdir -p artifacts && cp params.yaml artifacts/metrics.yaml
    deps: [data]
    params: [prune.fraction]
    metrics: [artifacts/metrics.yaml]
"""


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *arguments], check=True)


def test_an_experiment_leaves_params_alone_and_is_compared(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@localhost")
    (checkout / "params.yaml").write_text("prune: {fraction: 0.25}  # a note\n")
    (checkout / "dvc.yaml").write_text(STAGE)
    git("add", "--all")
    git("commit", "-q", "-m", "start")
    assert dvc(["repro", "-q"]) == 0
    git("add", "dvc.lock")
    git("commit", "-q", "-m", "Before")
    [run] = commands("exp run")
    compare = next(each for each in commands("metrics diff") if "HEAD" in each)
    before = (checkout / "params.yaml").read_bytes()
    assert dvc(run) == 0
    assert (checkout / "params.yaml").read_bytes() == before
    capsys.readouterr()
    assert dvc(compare) == 0
    assert "-0.25" in capsys.readouterr().out
    [remove] = commands("exp remove")
    assert dvc(remove) == 0
