"""A commit and a tag for each published version, so that the very run can be had again.

    git checkout samovar-sample/v0007-1a2b3c4d && make pull && dvc repro

finds everything up to date. The commit holds every tracked file as it stood when the run ended,
and dvc.lock. It is made with an index of its own, on a branch of its own: the checkout, its index
and HEAD stay as they are, unless that branch is the one checked out.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dvc.repo import Repo

from flows.errors import FlowError
from flows.plan.dag import open_repo
from tasks.params.load import Record
from tasks.params.paths import OUTSIDE

ALWAYS = ("dvc.lock", "champion.json", str(OUTSIDE))
"""What a run writes for git; in the commit even where nobody has added it yet."""
TIMEOUT_S = 300.0
NO_COMMIT = "0" * 40
AUTHOR = {"name": "Samovar", "email": "samovar@localhost"}
"""Who commits where git has not been told."""


def record_version(root: Path, record: Record, tag: str, message: str) -> str | None:
    """Commit the checkout at `root` to `record.branch`, tag the commit, push both.

    Args:
        root: The checkout.
        record: Branch and remote.
        tag: Name of the tag; one that exists, here or at the remote, is left as it is.
        message: Of the commit.

    Returns:
        The tag, or None where `record.branch` is null.

    Raises:
        FlowError: There is no git repository, a stage reads a file that git does not have, or the
            remote refuses. Nothing is lost: the next run records the version then.
    """
    if record.branch is None:
        return None
    git = Git(root)
    if record.remote is not None:
        git.fetch(record.remote, record.branch, tag)
    if git.commit_of(f"refs/tags/{tag}") is None:
        _commit(git, record, tag, message)
    if record.remote is not None:
        git.push(record.remote, record.branch, tag)
    return tag


def _commit(git: "Git", record: Record, tag: str, message: str) -> None:
    branch = f"refs/heads/{record.branch}"
    there = f"refs/remotes/{record.remote}/{record.branch}"
    old, head = git.commit_of(branch), git.commit_of("HEAD")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        if head is not None:
            git.run("read-tree", head, extra=index)
        git.run("add", "--update", extra=index)
        with open_repo() as repo:
            written = _written_for_git(repo)
            read = _read_from_git(repo)
        git.run("add", "--force", "--", *written, extra=index)
        _check_complete(git, read, index)
        tree = git.run("write-tree", extra=index)
    heads = (old, git.commit_of(there), head)
    parents = git.independent([each for each in heads if each is not None])
    options = [option for parent in parents for option in ("-p", parent)]
    commit = git.run("commit-tree", tree, *options, "-m", message)
    # both names appear together: a run killed here leaves neither
    git.run(
        "update-ref",
        "--stdin",
        text=f"create refs/tags/{tag} {commit}\nupdate {branch} {commit} {old or NO_COMMIT}\n",
    )
    if git.run("symbolic-ref", "--quiet", "HEAD", may_fail=True) == branch:
        git.run("read-tree", commit)


def _written_for_git(repo: Repo) -> list[str]:
    """What DVC does not keep: the lock file, .dvc files, small outputs with `cache: false`."""
    stages = repo.index.stages
    outs = [out for stage in stages for out in stage.outs if not out.use_cache]
    data = [str(stage.relpath) for stage in stages if stage.is_data_source]
    paths = [*ALWAYS, *data, *(str(out.def_path) for out in outs)]
    return [path for path in paths if Path(path).exists()]


def _read_from_git(repo: Repo) -> list[str]:
    """Files and folders of this repository that stages read and no stage or .dvc file provides."""
    root = Path(repo.root_dir)
    provided = [Path(out.fs_path) for out in repo.index.outs]
    read = {Path(dep.fs_path) for dep in repo.index.deps if dep.protocol == "local"}
    return sorted(
        path.relative_to(root).as_posix()
        for path in read
        if path.is_relative_to(root) and not any(_overlap(path, each) for each in provided)
    )


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _check_complete(git: "Git", read: Sequence[str], index: Mapping[str, str]) -> None:
    """See that the commit will hold all that stages read.

    Raises:
        FlowError: It would not; the message names the files.
    """
    if not read:
        return
    listed = git.run("ls-files", "-z", "--cached", "--", *read, extra=index).split("\0")
    untracked = git.run(
        "ls-files", "-z", "--others", "--exclude-standard", "--", *read, extra=index
    )
    held = {str(parent) for path in listed if path for parent in (Path(path), *Path(path).parents)}
    missing = sorted({path for path in untracked.split("\0") if path} | (set(read) - held))
    if missing:
        raise FlowError(
            f"the version is published, but has no tag yet: stages read {', '.join(missing)}, "
            "which git does not have. `git add` them and run again"
        )


class Git:
    """Commands of git in one checkout.

    Raises:
        FlowError: There is no repository, or git does not trust it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._environment = _environment(root)
        self._check_usable()

    def _check_usable(self) -> None:
        try:
            self.run("rev-parse", "--is-inside-work-tree")
        except FlowError as error:
            if "safe.directory" in str(error):
                raise FlowError(
                    f"git refuses {self._root}, which belongs to another user, so a published "
                    "version would get no tag: trust it with "
                    f"`git config --global --add safe.directory {self._root}`"
                ) from error
            if "not a git repository" not in str(error):
                raise
            raise FlowError(
                f"{self._root} is no git repository, so a published version gets no tag: clone the "
                "project instead of copying it, or set record.branch to null in params.yaml"
            ) from error

    def run(
        self,
        *arguments: str,
        extra: Mapping[str, str] | None = None,
        text: str | None = None,
        may_fail: bool = False,
    ) -> str:
        """The output of one command; empty when it fails and may.

        Raises:
            FlowError: It failed, or took longer than five minutes.
        """
        try:
            result = subprocess.run(
                ["git", *arguments],
                cwd=self._root,
                env=self._environment | dict(extra or {}),
                input=text,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="surrogateescape",  # paths are bytes, and go back to git as they came
                timeout=TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise FlowError("git is not installed, so the published version gets no tag") from error
        except subprocess.TimeoutExpired as error:
            raise FlowError(f"git {arguments[0]} did not end within {TIMEOUT_S:.0f} s") from error
        if result.returncode and not may_fail:
            raise FlowError(f"git {arguments[0]} failed: {result.stderr.strip()}")
        return "" if result.returncode else result.stdout.strip()

    def commit_of(self, name: str) -> str | None:
        """The commit a name stands for."""
        return (
            self.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", may_fail=True)
            or None
        )

    def independent(self, commits: Sequence[str]) -> list[str]:
        """Those of the commits that are no ancestors of another."""
        return self.run("merge-base", "--independent", *commits).split() if commits else []

    def fetch(self, remote: str, branch: str, tag: str) -> None:
        """Get what the remote has of the branch and the tag."""
        names = (f"refs/heads/{branch}", f"refs/tags/{tag}")
        there = self.run("ls-remote", remote, *names)
        local = {names[0]: f"refs/remotes/{remote}/{branch}", names[1]: names[1]}
        found = [line.split()[1] for line in there.splitlines()]
        for name in found:
            self.run("fetch", "--quiet", "--no-tags", remote, f"+{name}:{local[name]}")

    def push(self, remote: str, branch: str, tag: str) -> None:
        """Push the branch and all version tags of this model, also those an earlier push missed.

        Raises:
            FlowError: The remote refuses or cannot be reached.
        """
        tags = f"refs/tags/{tag.rpartition('/')[0]}/*"
        try:
            self.run(
                "push", "--quiet", "--atomic", remote, f"refs/heads/{branch}", f"{tags}:{tags}"
            )
        except FlowError as error:
            raise FlowError(
                f"the version is published and tagged {tag} here, but {remote} did not take it; "
                f"the next run pushes it again\n{error}"
            ) from error


def _environment(root: Path) -> dict[str, str]:
    """Never a question at a terminal; an author where git has none."""
    clean = {name: value for name, value in os.environ.items() if name != "GIT_INDEX_FILE"}
    author = {
        f"GIT_{who}_{key.upper()}": value
        for key, value in AUTHOR.items()
        if not _is_configured(root, f"user.{key}")
        for who in ("AUTHOR", "COMMITTER")
    }
    # what git says is read here, in the one language it is written in
    fixed = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes"} | author | clean | fixed


def _is_configured(root: Path, key: str) -> bool:
    command = ["git", "config", key]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
