"""Where a run keeps its own files, and Prefect's settings, set before Prefect is imported.

Prefect reads its settings once, at import. Modules that import it (flows/run/stage.py,
flows/retrain.py, flows/show/artifacts.py) are therefore imported after `use_settings`.
"""

import contextlib
import os
import secrets
from pathlib import Path

from dotenv import load_dotenv

from tasks.params.paths import STATE

SETTINGS_FILE = Path("infra/prefect.env")
AUTH_FILE = STATE / "prefect" / "auth"
"""Name and password of this checkout's server, readable by its owner alone."""
SERVER_AUTH, CLIENT_AUTH = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def use_settings() -> None:
    """Put the settings of infra/prefect.env into the environment; variables already set win."""
    with SETTINGS_FILE.open(encoding="utf-8") as file:
        load_dotenv(stream=file)
    os.environ.setdefault("PREFECT_HOME", str((STATE / "prefect").resolve()))
    logging = Path(os.environ.get("PREFECT_LOGGING_SETTINGS_PATH", ""))
    os.environ["PREFECT_LOGGING_SETTINGS_PATH"] = str(logging.resolve())
    spare_loopback()
    if "PREFECT_API_URL" not in os.environ:
        _use_own_auth()


def spare_loopback() -> None:
    """Have nobody ask a proxy for this machine itself: ours, Prefect's, DVC's and the stages'.

    Where both are set programs read the small name or the capital one: both say the same now.
    """
    names = ("no_proxy", "NO_PROXY")
    given = (part.strip() for name in names for part in os.environ.get(name, "").split(","))
    hosts = ",".join(dict.fromkeys([*(part for part in given if part), *LOOPBACK]))
    os.environ.update(dict.fromkeys(names, hosts))


def _use_own_auth() -> None:
    """Have the server of this checkout ask for a password, and know it.

    One given as PREFECT_SERVER_API_AUTH_STRING is used instead; given empty, the server asks for
    none and listens on loopback only (flows/server/server.py).
    """
    given = os.environ.get(SERVER_AUTH)
    if given == "":
        return
    os.environ[SERVER_AUTH] = given or _own_auth()
    os.environ.setdefault(CLIENT_AUTH, os.environ[SERVER_AUTH])


def _own_auth() -> str:
    AUTH_FILE.parent.mkdir(parents=True, exist_ok=True)
    made = f"samovar:{secrets.token_urlsafe(24)}"
    with contextlib.suppress(FileExistsError):
        partial = AUTH_FILE.with_name(f"auth.{os.getpid()}")
        partial.touch(mode=0o600)
        partial.write_text(made, encoding="utf-8")
        try:
            os.link(partial, AUTH_FILE)  # whole or not at all, and never over another
        finally:
            partial.unlink()
    return AUTH_FILE.read_text(encoding="utf-8")


def login_hint() -> str:
    """How to log in to the server of this checkout, without the password itself."""
    if not os.environ.get(SERVER_AUTH):
        return "it asks for no password"
    source = f"{AUTH_FILE} holds" if _is_own_auth() else f"{SERVER_AUTH} holds"
    return f"one box, which takes `name:password` as {source} it"


def client_auth() -> str:
    """The word of a shell line that gives a client the password; empty where none is asked for."""
    if not os.environ.get(SERVER_AUTH):
        return ""
    source = f"$(cat {AUTH_FILE})" if _is_own_auth() else f"${SERVER_AUTH}"
    return f'{CLIENT_AUTH}="{source}"'


def _is_own_auth() -> bool:
    text = AUTH_FILE.read_text(encoding="utf-8") if AUTH_FILE.exists() else None
    return text == os.environ[SERVER_AUTH]
