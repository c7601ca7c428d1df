"""Where a Prefect server of ours keeps its runs: SQLite in the checkout, or PostgreSQL."""

import asyncio
import os
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from flows.errors import FlowError

VARIABLE = "DATABASE_URL"
SCHEMES = {"postgres", "postgresql"}
ANSWER_WAIT_S = 5
OLDEST = (14, 9)
"""The oldest PostgreSQL that Prefect knows."""


def database_settings() -> dict[str, str]:
    """What tells a server of its database; nothing where DATABASE_URL is not set: SQLite.

    Raises:
        FlowError: DATABASE_URL names another kind of database.
    """
    url = os.environ.get(VARIABLE)
    if not url:
        return {}
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise FlowError(
            f"{VARIABLE} is {parts.scheme or 'no address'}://..., and the Prefect server keeps its "
            "runs in postgresql://user:password@host:port/database; unset it for SQLite"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "sslmode" in options:  # libpq's name of it
        options["ssl"] = options.pop("sslmode")
    parts = parts._replace(scheme="postgresql+asyncpg", query=urlencode(options))
    return {"PREFECT_API_DATABASE_CONNECTION_URL": parts.geturl()}


def check_database() -> str:
    """See whether the database can be used; where it is, without its password.

    Raises:
        FlowError: It is of another kind, cannot be reached, refuses, or is too old.
    """
    if not database_settings():
        return f"SQLite, {VARIABLE} is not set"
    parts = urlsplit(os.environ[VARIABLE])
    place = f"{parts.hostname}:{parts.port or 5432}{parts.path}"
    try:
        version = asyncio.run(_version(os.environ[VARIABLE]))
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError) as error:
        reason = str(error) or f"no answer within {ANSWER_WAIT_S} s"
        raise FlowError(f"the database of {VARIABLE}, {place}, cannot be used: {reason}") from None
    if version < OLDEST:
        raise FlowError(
            f"the database of {VARIABLE}, {place}, is PostgreSQL {version[0]}.{version[1]}: "
            f"Prefect needs {OLDEST[0]}.{OLDEST[1]} or newer"
        )
    return f"PostgreSQL {version[0]}.{version[1]} at {place}"


async def _version(url: str) -> tuple[int, int]:
    connection = await asyncpg.connect(url, timeout=ANSWER_WAIT_S)
    try:
        found = connection.get_server_version()
    finally:
        await connection.close()
    return found.major, found.minor
