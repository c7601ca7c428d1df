"""Tells people how a run ended: by mail, to a chat or any webhook.

SAMOVAR_NOTIFY holds the addresses, apart by spaces, as Apprise writes them:
`mailto://user:password@host/?from=a@host&to=b@host`, a webhook of Slack as Slack shows it,
`json://host/path`, and a hundred others. They hold passwords and tokens, hence the environment and
no file. Told are a failed, crashed or cancelled run, a published version, and a new model that the
gate refused; a run that found nothing to do is silent.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import apprise
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.utilities.urls import url_for

from flows.server.server import OPEN_COMMAND, ends_with_us
from flows.terminal import say, use_terminal

ADDRESSES = "SAMOVAR_NOTIFY"
LONGEST = 3000
"""Characters of a message; the end of a long one says most."""

KINDS = {
    StateType.FAILED: "failed",
    StateType.CRASHED: "crashed",
    StateType.CANCELLED: "was cancelled",
}


def tell(title: str, text: str, *, is_good: bool = False) -> None:
    """Send a message to every address; one that cannot be reached is said, and nothing fails.

    Args:
        title: One line.
        text: Plain text.
        is_good: Whether it is good news: chats colour it.
    """
    kind = apprise.NotifyType.SUCCESS if is_good else apprise.NotifyType.FAILURE
    found, faults = read_addresses()
    for fault in faults:
        say(fault)
    for service in found:
        # its own log lines name the address with its token
        logging.getLogger("apprise").disabled = True
        if not service.notify(body=text[-LONGEST:], title=title, notify_type=kind):
            say(f"could not notify {service.url(privacy=True)}")


def tell_published(tag: str, text: str) -> None:
    """A new version is in the registry."""
    tell(f"Samovar published {tag}", text, is_good=True)


def tell_refused(reasons: Sequence[str]) -> None:
    """The gate kept a new model from being published."""
    tell("Samovar: the gate refused the new model", "\n".join(reasons))


def tell_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of a run that did not end well; a killed one is told by the process that started it."""
    use_terminal()
    link = f"look at it with {OPEN_COMMAND}" if ends_with_us() else url_for(flow_run)
    # one that never began has a name that says nothing
    name = flow_run.name if " " in flow_run.name else f"{flow.name} {flow_run.name}"
    tell(
        f"Samovar: {name} {KINDS.get(state.type, state.name)}",
        "\n".join(part for part in (state.message, link) if part),
    )


def read_addresses() -> tuple[list[apprise.NotifyBase], list[str]]:
    """The addresses of SAMOVAR_NOTIFY, and a sentence for each that cannot be used."""
    found: list[apprise.NotifyBase] = []
    faults: list[str] = []
    for number, address in enumerate(os.environ.get(ADDRESSES, "").split(), start=1):
        service = apprise.Apprise.instantiate(address)
        if isinstance(service, apprise.NotifyBase):
            found.append(service)
        else:
            scheme = address.partition("://")[0][:20]
            faults.append(
                f"address {number} of {ADDRESSES} ({scheme}://...) is none that Apprise can use"
            )
    return found, faults
