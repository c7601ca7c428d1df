"""Where a run keeps its own files, and Prefect's settings, set before Prefect is imported.

Prefect reads its settings once, at import. Modules that import it (flows/stage.py,
flows/retrain.py, flows/artifacts.py) are therefore imported after `use_settings`.
"""

import os
from pathlib import Path

SETTINGS_FILE = Path("infra/prefect.env")
STATE = Path(".samovar")
"""Locks and Prefect's database; git-ignored, never a stage output."""


def use_settings() -> None:
    """Put the settings of infra/prefect.env into the environment; variables already set win."""
    for name, value in read_settings(SETTINGS_FILE).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str((STATE / "prefect").resolve()))
    logging = Path(os.environ.get("PREFECT_LOGGING_SETTINGS_PATH", ""))
    os.environ["PREFECT_LOGGING_SETTINGS_PATH"] = str(logging.resolve())


def read_settings(path: Path) -> dict[str, str]:
    """The NAME=value lines of an environment file; empty lines and # comments are left out."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
