"""The report in a browser: only it and the data docs, and only for who knows the password."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows import pages
from flows.settings import SERVER_AUTH
from tasks.params.paths import DATA_DOCS, DECISION, REPORT

AUTH = ("samovar", "слово: a word")


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SERVER_AUTH, ":".join(AUTH))
    for page in (REPORT, DATA_DOCS, DECISION, Path("secret.txt")):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(page.name)


@pytest.fixture
def server() -> Iterator[str]:
    with pages.open_server(0) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def status(address: str) -> int:
    return httpx.get(address, auth=AUTH, trust_env=False).status_code


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("report/index.html", 200),
        ("validate/data_docs/index.html", 200),
        ("report", 404),
        ("report/", 404),
        ("", 404),
        ("gate/decision.json", 404),
        ("report/%2e%2e/gate/decision.json", 404),
        ("report/..%2f..%2fsecret.txt", 404),
    ],
)
def test_only_the_pages_are_given_out(server: str, path: str, wanted: int) -> None:
    assert status(f"{server}/{path}") == wanted


def test_the_password_of_the_server_is_asked_for(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = f"{server}/report/index.html"
    for auth in (None, ("samovar", "wrong")):
        answer = httpx.get(page, auth=auth, trust_env=False)
        assert (answer.status_code, answer.text) == (401, "")
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
    monkeypatch.setenv(SERVER_AUTH, "")
    assert httpx.get(page, trust_env=False).text == "index.html"


def test_a_taken_port_is_no_reason_to_stay_down(server: str) -> None:
    with pages.open_server(int(server.rpartition(":")[2])) as other:
        assert other.server_port != int(server.rpartition(":")[2])


def test_pages_that_nobody_serves_have_no_address() -> None:
    assert pages.address_of(REPORT) is None
