"""What is made of pip-audit's answer. The program is made up: the real one needs a network."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import audit
from infra.audit import Audit, NotAuditedError

SOUND = {"name": "sound", "version": "1.0", "vulns": []}
ROTTEN = {
    "name": "rotten",
    "version": "2.0",
    "vulns": [
        {"id": "CVE-1", "fix_versions": ["2.1", "3.0"], "aliases": [], "description": ""},
        {"id": "CVE-2", "fix_versions": [], "aliases": [], "description": ""},
    ],
}
OWN = {"name": "own", "skip_reason": "Dependency not found and could not be audited: own (1.0)"}

PROGRAM = """
import pathlib, sys
answer, status, word = {answer!r}, {status}, {word!r}
if answer is not None:
    pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text(answer)
print(word, file=sys.stderr)
sys.exit(status)
"""


def program(
    tmp_path: Path, *packages: dict[str, Any], status: int = 0, word: str = ""
) -> list[str]:
    answer = json.dumps({"dependencies": packages, "fixes": []}) if packages else None
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(answer=answer, status=status, word=word))
    return [sys.executable, str(file)]


def test_vulnerabilities_are_named_with_what_mends_them(tmp_path: Path) -> None:
    command = program(tmp_path, SOUND, ROTTEN, OWN, status=1)
    assert audit.audit(command, Path("requirements.lock")) == Audit(
        asked=2,
        vulnerable=[
            "rotten 2.0: CVE-1, mended in 2.1, 3.0",
            "rotten 2.0: CVE-2, mended in no version yet",
        ],
        unknown=["own"],
    )


@pytest.mark.parametrize(
    ("packages", "why"), [((), "ERROR: no network"), ((OWN,), "knows none of the packages")]
)
def test_no_answer_is_no_success(
    tmp_path: Path, packages: tuple[dict[str, Any], ...], why: str
) -> None:
    command = program(tmp_path, *packages, status=1, word="trace\nERROR: no network")
    with pytest.raises(NotAuditedError, match=why):
        audit.audit(command, Path("requirements.lock"))


def test_a_program_whose_python_is_gone_is_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "pip-audit"
    script.write_text("#!/gone/bin/python\n")
    script.chmod(0o755)
    with pytest.raises(NotAuditedError, match=r"does not start .*remove \.venv/audit"):
        audit.audit([str(script)], tmp_path / "requirements.lock")


@pytest.mark.parametrize(
    ("packages", "options", "ends"),
    [
        ((SOUND,), [], None),
        ((ROTTEN,), ["--where-possible"], "known vulnerabilities:\nrotten 2.0: CVE-1"),
        ((SOUND, OWN), [], "some packages were not audited"),
        ((), [], "NOTHING WAS AUDITED: ERROR: no network"),
        ((), ["--where-possible"], None),
    ],
)
def test_only_lint_goes_on_without_an_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: tuple[dict[str, Any], ...],
    options: list[str],
    ends: str | None,
) -> None:
    command = program(tmp_path, *packages, word="ERROR: no network")
    real = audit.audit
    monkeypatch.setattr(audit, "audit", lambda _, lock: real(command, lock))
    monkeypatch.setattr(audit, "_program", lambda: Path("unused"))
    monkeypatch.setattr(sys, "argv", ["audit", *options])
    if ends is not None:
        with pytest.raises(SystemExit, match=ends):
            audit.main()
        return
    audit.main()
    said = capsys.readouterr().err
    assert said.startswith("no known" if packages else "NOTHING WAS AUDITED")
