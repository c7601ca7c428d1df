from pathlib import Path

import pytest
import yaml
from dvc.cli import main as dvc

from flows.errors import FlowError
from flows.plan.dag import NEVER_RUN, changed, check_data, read_stages, select

# of pygtrie, inside DVC
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def entry(name: str, *inputs: str) -> dict[str, object]:
    return {
        "cmd": f"mkdir -p out && echo x > out/{name} && echo {{}} > out/{name}.json",
        "deps": list(inputs),
        "outs": [f"out/{name}"],
        "metrics": [f"out/{name}.json"],
    }


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A DVC repository whose stages are written in another order than they run."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "source.txt").write_text("source")
    stages = {
        "last": entry("last", "out/a", "out/b"),
        "many": {"matrix": {"item": ["a", "b"]}, **entry("${item.item}", "out/first")},
        "first": entry("first", "source.txt"),
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_stage_comes_after_what_it_reads(repository):
    stages = {stage.name: stage.upstream for stage in read_stages()}
    assert list(stages) == ["first", "many@a", "many@b", "last"]
    assert stages["last"] == ("many@a", "many@b")
    assert stages["many@a"] == ("first",)


def test_metrics_files_are_known(repository):
    assert read_stages()[0].metrics == (Path("out/first.json"),)


def test_unreadable_pipeline_is_said_in_the_words_of_dvc(repository):
    (repository / "dvc.yaml").write_text("stages:\n  a: {cmd: x, bogus: 1}\n")
    with pytest.raises(FlowError, match="validation failed"):
        read_stages()


def test_stages_that_read_each_other_are_refused(repository):
    stages = {"a": entry("a", "out/b"), "b": entry("b", "out/a")}
    (repository / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(FlowError, match="both a dependency and an output"):
        read_stages()


def test_name_of_a_matrix_selects_all_its_stages(repository):
    stages = read_stages()
    assert [stage.name for stage in select(stages, ["many"])] == ["many@a", "many@b"]
    assert [stage.name for stage in select(stages, ["many@b", "first"])] == ["first", "many@b"]


def test_unknown_name_is_refused_with_the_known_ones(repository):
    with pytest.raises(FlowError, match=r"nosuch.*first, many@a, many@b, last"):
        select(read_stages(), ["nosuch"])


@pytest.mark.usefixtures("repository")
def test_stage_that_never_ran_is_changed():
    assert changed() == dict.fromkeys(("first", "many@a", "many@b", "last"), NEVER_RUN)


def test_stage_that_ran_says_what_differs(repository):
    assert dvc(["repro", "-q", "first"]) == 0
    assert "first" not in changed()
    (repository / "source.txt").write_text("edited")
    assert changed()["first"] == "changed deps: source.txt modified"


def test_edited_corpus_is_refused():
    with pytest.raises(
        FlowError, match=r"data\.dvc: changed outs: data modified.*dvc commit --force"
    ):
        check_data({"ingest": "changed deps", "data.dvc": "changed outs: data modified"})


def test_every_edited_corpus_is_named_at_once():
    with pytest.raises(FlowError, match=r"(?s)a\.dvc.*\nb\.dvc"):
        check_data({"a.dvc": "changed outs", "b.dvc": "changed outs"})


def test_changed_stages_are_no_matter_of_data():
    check_data({"ingest": "changed deps"})
