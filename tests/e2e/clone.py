"""A clone of the working tree with the pico profile, in which whole pipelines run."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tasks.contract.stage import write_json

ROOT = Path(__file__).resolve().parents[2]
NOTHING_PUBLISHED = {"version": None, "fingerprint": None, "mean": None, "scores": {}}


@dataclass(frozen=True)
class Clone:
    """A checkout of its own: own git history, DVC cache, store and artifacts."""

    root: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone with this interpreter's folder first on PATH."""
        environment = dict(os.environ)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["DVC_NO_ANALYTICS"] = "1"
        done = subprocess.run(
            command, cwd=self.root, env=environment, text=True, capture_output=True, check=False
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{_tail(done)}")
        return done

    def lock(self) -> dict[str, dict[str, str]]:
        """Hash of every output of every stage, as dvc.lock records it."""
        content = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))
        return {
            stage: {out["path"]: out["md5"] for out in entry.get("outs", [])}
            for stage, entry in content["stages"].items()
        }

    def set_param(self, key: str, value: object) -> None:
        """Change one value of params.yaml in place, all else left as it is."""
        path = self.root / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        assert last in section, f"{key} is no key of params.yaml"
        section[last] = value
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((done.stdout + done.stderr).splitlines()[-40:])


def clone_working_tree(target: Path, sample: Path) -> Clone:
    """Copy every file git would keep into `target`, `sample` as its data/, with a first commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if source.is_file() and source.suffix != ".dvc":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    # what somebody's own runs, data and edits left in this checkout decides no test
    (target / "dvc.lock").unlink(missing_ok=True)
    write_json(target / "champion.json", NOTHING_PUBLISHED)
    shutil.copytree(sample, target / "data")
    shutil.copyfile(ROOT / "infra/profiles/pico.yaml", target / "params.yaml")
    clone = Clone(target)
    clone.run("git", "init", "-q")
    clone.run("dvc", "add", "--quiet", "data")
    clone.run("git", "add", "-A")
    clone.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")
    return clone
