"""What git keeps of a published version: a commit and a tag, and the checkout as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.checkout.record import record_version
from flows.errors import FlowError
from tasks.params.load import Record
from tests.flows.toy import Toy, git

pytestmark = pytest.mark.slow

LOCAL = Record(branch="retrained", remote=None)
SHARED = Record(branch="retrained", remote="origin")
TAG = "model/v0001-aa"


@pytest.fixture
def root(ran: Toy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which everything is up to date, without tags."""
    monkeypatch.chdir(ran.root)
    for tag in git(ran.root, "tag").split():
        git(ran.root, "tag", "--delete", tag)
    git(ran.root, "branch", "-D", "retrained")
    return ran.root


@pytest.fixture
def origin(root: Path, tmp_path: Path) -> Path:
    """A bare repository that the checkout knows as origin."""
    bare = tmp_path / "origin.git"
    git(root, "init", "-q", "--bare", str(bare))
    git(root, "remote", "add", "origin", str(bare))
    return bare


def clone(origin: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(origin, "clone", "-q", "--branch", "retrained", str(origin), str(folder))
    git(folder, "checkout", "-q", "--detach")
    monkeypatch.chdir(folder)
    return folder


def test_the_tag_holds_every_file_as_it_stood_and_the_lock_file(root: Path):
    (root / "stage.py").write_text((root / "stage.py").read_text() + "# edited\n")
    head, status = git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")
    assert record_version(root, LOCAL, TAG, "Publish it\n\nSampleSTS 25.0") == TAG
    assert git(root, "show", f"{TAG}:stage.py").endswith("# edited")
    assert git(root, "show", f"{TAG}:dvc.lock") == (root / "dvc.lock").read_text().strip()
    assert git(root, "show", f"{TAG}:artifacts/merge/metrics.json")
    assert git(root, "log", "-1", "--format=%B", TAG) == "Publish it\n\nSampleSTS 25.0"
    assert git(root, "rev-parse", f"{TAG}~1") == head
    assert git(root, "rev-parse", "HEAD") == head
    assert git(root, "status", "--porcelain") == status


def test_versions_follow_each_other_on_the_branch(root: Path):
    record_version(root, LOCAL, TAG, "first")
    git(root, "commit", "-q", "--allow-empty", "-m", "work goes on")
    record_version(root, LOCAL, "model/v0002-bb", "second")
    parents = git(root, "log", "-1", "--format=%P", "retrained").split()
    assert sorted(parents) == sorted([git(root, "rev-parse", TAG), git(root, "rev-parse", "HEAD")])


def test_a_tag_that_exists_is_left_alone(root: Path):
    record_version(root, LOCAL, TAG, "first")
    before = git(root, "show-ref")
    record_version(root, LOCAL, TAG, "again")
    assert git(root, "show-ref") == before


def test_no_branch_no_tag(root: Path):
    assert record_version(root, Record(branch=None, remote=None), TAG, "it") is None
    assert git(root, "tag") == ""


def test_a_file_that_git_does_not_have_is_named(root: Path):
    git(root, "rm", "-q", "--cached", "stage.py")
    git(root, "commit", "-q", "-m", "forgotten")
    with pytest.raises(FlowError, match=r"stages read stage\.py, which git does not have"):
        record_version(root, LOCAL, TAG, "it")
    assert git(root, "tag") == ""


def test_a_dvc_file_that_nobody_added_to_git_is_in_the_tag(root: Path):
    (root / "extra.txt").write_text("imported")
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "extra.txt"], cwd=root, check=True)
    record_version(root, LOCAL, TAG, "it")
    assert "extra.txt" in git(root, "show", f"{TAG}:extra.txt.dvc")


def test_a_folder_without_git_says_so(root: Path, tmp_path: Path):
    with pytest.raises(FlowError, match="no git repository"):
        record_version(tmp_path, LOCAL, TAG, "it")


def test_the_branch_may_be_the_one_checked_out(root: Path):
    git(root, "checkout", "-q", "-b", "retrained")
    record_version(root, LOCAL, TAG, "it")
    assert git(root, "rev-parse", "HEAD") == git(root, "rev-parse", TAG)
    assert git(root, "status", "--porcelain", "--untracked-files=no") == ""


def test_no_author_is_needed(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    record_version(root, LOCAL, TAG, "it")
    assert git(root, "log", "-1", "--format=%an", TAG) == "Samovar"


def test_branch_and_tags_are_pushed_and_two_checkouts_share_them(
    root: Path, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record_version(root, SHARED, TAG, "first")
    assert git(origin, "rev-parse", TAG) == git(origin, "rev-parse", "retrained")
    other = clone(origin, tmp_path / "other", monkeypatch)
    record_version(other, SHARED, "model/v0002-bb", "by the other")
    monkeypatch.chdir(root)
    record_version(root, SHARED, "model/v0003-cc", "by the first again")
    assert git(origin, "log", "--format=%s", "--first-parent", "-2", "retrained").splitlines() == [
        "by the first again",
        "by the other",
    ]
    assert git(origin, "rev-parse", "model/v0003-cc") == git(origin, "rev-parse", "retrained")


def test_a_tag_of_the_remote_is_not_made_again(
    root: Path, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record_version(root, SHARED, TAG, "first")
    other = clone(origin, tmp_path / "other", monkeypatch)
    git(other, "tag", "--delete", TAG)
    record_version(other, SHARED, TAG, "again")
    assert git(other, "rev-parse", TAG) == git(root, "rev-parse", TAG)


def test_what_a_lost_remote_missed_is_pushed_by_the_next_run(root: Path, origin: Path):
    hook = origin / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(FlowError, match=f"tagged {TAG} here, but origin did not take it"):
        record_version(root, SHARED, TAG, "first")
    hook.unlink()
    record_version(root, SHARED, TAG, "first")
    assert git(origin, "rev-parse", TAG) == git(root, "rev-parse", TAG)


def test_a_remote_that_is_gone_is_named_before_anything_is_written(root: Path):
    git(root, "remote", "add", "origin", str(root / "nowhere"))
    with pytest.raises(FlowError, match=r"git ls-remote failed: .*nowhere"):
        record_version(root, SHARED, TAG, "it")
    assert subprocess.run(["git", "rev-parse", TAG], cwd=root, capture_output=True).returncode
