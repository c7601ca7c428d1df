"""Who is told how a run ended, through receivers that really listen."""

import email
import email.policy

import pytest

from flows.server.server import free_port
from flows.show.notify import ADDRESSES, LONGEST, tell
from tests.flows.receiver import mail_server, webhook
from tests.flows.toy import Toy

pytestmark = pytest.mark.slow


def test_a_message_reaches_a_webhook(monkeypatch: pytest.MonkeyPatch):
    with webhook() as (address, bodies):
        monkeypatch.setenv(ADDRESSES, address)
        tell("Model", "x" * 10_000 + "the end")
    assert [body["title"] for body in bodies] == ["Model"]
    assert bodies[0]["type"] == "failure"
    assert bodies[0]["message"].endswith("the end")
    assert len(bodies[0]["message"]) == LONGEST


def test_a_message_reaches_a_mailbox(monkeypatch: pytest.MonkeyPatch):
    with mail_server() as (port, letters):
        address = f"mailto://127.0.0.1:{port}/?from=samovar@here.example&to=team@here.example"
        monkeypatch.setenv(ADDRESSES, address)
        tell("Самовар", "Модель опубликована", is_good=True)
    letter = email.message_from_string(letters[0], policy=email.policy.default)
    assert letter["Subject"] == "Самовар"
    assert letter["To"] == "team@here.example"
    body = letter.get_body(("plain",))
    assert body is not None
    assert "Модель опубликована" in body.get_content()


def test_one_address_that_fails_is_said_without_its_secret_and_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with webhook() as (address, bodies):
        dead = f"json://user:hidden-word@127.0.0.1:{free_port()}/"
        monkeypatch.setenv(ADDRESSES, f"nonsense://hidden-token {dead} {address}")
        said: list[str] = []
        monkeypatch.setattr("flows.show.notify.say", said.append)
        tell("Model", "text")
    assert len(bodies) == 1
    assert len(said) == 2
    assert "address 1 of SAMOVAR_NOTIFY (nonsense://...)" in said[0]
    assert "could not notify json://user:****@127.0.0.1" in said[1]
    printed = capsys.readouterr()
    assert "hidden" not in "".join(said) + printed.out + printed.err


def test_without_addresses_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ADDRESSES, raising=False)
    tell("Model", "text")


def test_people_are_told_of_failures_refusals_and_versions_but_not_of_nothing(ran: Toy):
    with webhook() as (address, bodies):
        told = {ADDRESSES: address}
        status, output = ran.retrain(**told)
        assert status == 0, output
        bodies.clear()

        ran.edit_corpus("other ")
        ran.knob("merge.fail")
        assert ran.retrain(**told)[0] == 1
        failure = bodies.pop()
        assert failure["title"].endswith(" failed")
        assert "merge failed with status" in failure["message"]
        assert "trouble 39 in merge" in failure["message"]
        assert "/runs/flow-run/" in failure["message"]

        ran.unset("merge.fail")
        ran.knob("publish.refuse")
        assert ran.retrain(**told)[0] == 0
        assert bodies.pop()["message"] == "mean 0.4 is below the champion's 0.5"

        assert ran.retrain(**told)[0] == 0
        assert bodies == [], "the same refusal is not told again when nothing has run"

        ran.unset("publish.refuse")
        assert ran.retrain(**told)[0] == 0
        news = bodies.pop()
        assert news["title"].startswith("Samovar published samovar-sample/v0001-")
        assert "SampleSTS 25.0" in news["message"]
        assert bodies == []
