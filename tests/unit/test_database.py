"""Which database a server of ours is given."""

import pytest

from flows.errors import FlowError
from flows.server import database
from flows.server.server import free_port


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("postgresql://a:b@db/runs", "postgresql+asyncpg://a:b@db/runs"),
        ("postgres://a:p%40ss@db:5433/runs", "postgresql+asyncpg://a:p%40ss@db:5433/runs"),
        ("postgresql://a@db/r?sslmode=require", "postgresql+asyncpg://a@db/r?ssl=require"),
    ],
)
def test_the_address_is_written_as_prefect_reads_it(
    given: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    assert database.database_settings() == {"PREFECT_API_DATABASE_CONNECTION_URL": told}


@pytest.mark.parametrize("given", [None, ""])
def test_without_an_address_it_is_sqlite(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    if given is not None:
        monkeypatch.setenv("DATABASE_URL", given)
    assert database.database_settings() == {}
    assert "SQLite" in database.check_database()


@pytest.mark.parametrize("given", ["mysql://secret@db/runs", "secret"])
def test_another_kind_of_database_is_refused_without_its_password(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(FlowError, match="postgresql://user:password@host:port/database") as told:
        database.check_database()
    assert "secret" not in str(told.value)


def test_one_that_is_down_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:secret@127.0.0.1:{free_port()}/runs")
    with pytest.raises(FlowError, match=r"127\.0\.0\.1:\d+/runs, cannot be used: ") as told:
        database.check_database()
    assert "secret" not in str(told.value)


def test_one_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def version(_url: str) -> tuple[int, int]:
        return 13, 2

    monkeypatch.setenv("DATABASE_URL", "postgresql://me@db/runs")
    monkeypatch.setattr(database, "_version", version)
    with pytest.raises(FlowError, match=r"is PostgreSQL 13\.2: Prefect needs 14\.9"):
        database.check_database()
