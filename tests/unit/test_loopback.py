"""This machine is asked without the proxy that the environment names."""

import os
import urllib.request

import pytest
from pytest_httpserver import HTTPServer

from flows.server.server import free_port, is_up, reached_at
from flows.settings import spare_loopback


@pytest.fixture
def server(httpserver: HTTPServer) -> str:
    """The address of an API that is up."""
    httpserver.expect_request("/api/health").respond_with_data()
    return httpserver.url_for("/api")


@pytest.fixture(autouse=True)
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody listens on, and no exception from it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards


def test_a_server_of_this_machine_is_found_behind_a_proxy(server: str) -> None:
    assert is_up(server)
    assert not is_up(server.removesuffix("/api"))
    assert not is_up(f"http://127.0.0.1:{free_port()}/api")
    assert not is_up("no address")


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1"), ("10.0.0.5", "10.0.0.5"), ("fd00::5", "[fd00::5]")],  # noqa: S104
)
def test_a_server_for_others_is_asked_where_it_listens(host: str, address: str) -> None:
    assert reached_at(host) == address


def test_all_clients_of_ours_leave_the_proxy_out_for_this_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "store.example, .inner.example")
    monkeypatch.setenv("NO_PROXY", "other.example")
    spare_loopback()
    spare_loopback()
    hosts = "store.example,.inner.example,other.example,127.0.0.1,localhost,::1"
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (hosts, hosts)
    assert urllib.request.proxy_bypass("127.0.0.1:4200")
    assert urllib.request.proxy_bypass("localhost")
    assert not urllib.request.proxy_bypass("far.example")
