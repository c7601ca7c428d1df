"""Known vulnerabilities of the pinned packages, as pip-audit finds them: `python -m infra.audit`.

pip-audit asks a public service, and has an environment of its own, since its packages are not ours.
Where there is no network `make audit` fails; `make lint`, which has to work anywhere, says that
nothing was audited and goes on.
"""

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LOCK = Path("requirements.lock")
ENVIRONMENT = Path(".venv/audit")
PINNED = "pip-audit==2.10.1"
LONGEST_S = 600


class NotAuditedError(RuntimeError):
    """The service cannot be asked, or knows none of the packages."""


@dataclass(frozen=True)
class Audit:
    """What was found."""

    asked: int
    vulnerable: list[str]
    """A line for each vulnerability: package, its version, the name of it, what mends it."""
    unknown: list[str]
    """Packages the service does not know."""


def main() -> None:
    """Audit; exit 1 on a vulnerability."""
    parser = argparse.ArgumentParser(prog="python -m infra.audit", description=__doc__)
    parser.add_argument(
        "--where-possible", action="store_true", help="without a network say so, and succeed"
    )
    is_lenient = parser.parse_args().where_possible
    try:
        found = audit([str(_program())], LOCK)
    except NotAuditedError as error:
        message = f"NOTHING WAS AUDITED: {error}"
        if not is_lenient:
            sys.exit(message)
        print(message, file=sys.stderr)  # noqa: T201 - a command's own words
        return
    if found.unknown:
        names = ", ".join(found.unknown)
        print(f"NOT AUDITED, unknown to the service: {names}", file=sys.stderr)  # noqa: T201
    if found.vulnerable:
        sys.exit("\n".join(["known vulnerabilities:", *found.vulnerable]))
    if found.unknown and not is_lenient:
        sys.exit("some packages were not audited")
    print(f"no known vulnerability in {found.asked} packages", file=sys.stderr)  # noqa: T201


def audit(command: Sequence[str], lock: Path) -> Audit:
    """Ask for every package of a lock file.

    Args:
        command: That starts pip-audit.
        lock: `name==version` lines.

    Raises:
        NotAuditedError: There is no answer, or it is about no package.
    """
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "audit.json"
        options = ["--requirement", str(lock), "--no-deps", "--disable-pip", "--format", "json"]
        try:
            done = subprocess.run(
                [*command, *options, "--progress-spinner", "off", "--output", str(answer)],
                capture_output=True, text=True, check=False, timeout=LONGEST_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NotAuditedError(f"no answer within {LONGEST_S} s") from None
        except OSError as error:  # its Python is gone, with the folder that it was made for
            raise NotAuditedError(
                f"{command[0]} does not start ({error}): remove {ENVIRONMENT}"
            ) from error
        # it ends with 1 on a vulnerability as on an error, which leaves no answer
        if not answer.exists():
            raise NotAuditedError(_last_line(done.stderr))
        packages: list[dict[str, Any]] = json.loads(answer.read_text("utf-8"))["dependencies"]
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        raise NotAuditedError("the service knows none of the packages")
    return Audit(
        asked=len(known),
        vulnerable=[
            f"{package['name']} {package['version']}: {each['id']}, mended in "
            f"{', '.join(each['fix_versions']) or 'no version yet'}"
            for package in known
            for each in package["vulns"]
        ],
        unknown=[package["name"] for package in packages if "skip_reason" in package],
    )


def _program() -> Path:
    """pip-audit, installed if need be.

    Raises:
        NotAuditedError: It cannot be installed.
    """
    program = ENVIRONMENT / "bin" / "pip-audit"
    if not program.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        install = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", PINNED]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotAuditedError(f"{PINNED} was not installed: {_last_line(done.stderr)}")
    return program


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no word of why"


if __name__ == "__main__":
    main()
