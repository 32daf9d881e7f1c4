"""`swg egress`: what an app may open connections to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import show
from shellwego.cli.rules import PORTS_AND_PROTOCOL, ports_and_protocol
from shellwego.cli.session import Session, shared

if TYPE_CHECKING:
    from shellwego.client.generated import DestinationBody, EgressView

_DESTINATION = re.compile(r"(?P<network>[^:/]+(?:/[0-9]+)?)" + PORTS_AND_PROTOCOL)
_destinations = click.argument("destinations", nargs=-1, required=True, metavar="DESTINATION...")


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def egress() -> None:
    """Show and change what an app may open connections to outside of its private network.

    A destination is a network of IPv4, of which ports and a protocol may be named: 203.0.113.0/24,
    203.0.113.7:443/tcp, 203.0.113.0/24:8000-8100/udp, 203.0.113.7/icmp. Ports alone are those of tcp.

    A change acts within seconds on all that runs of the app, open connections too, without a deploy. Names are asked of the
    host's resolver in either mode.
    """


@egress.command("show")
@shared
def show_egress(session: Session) -> None:
    """Show the mode, and the list."""
    _show(session, session.client.get_egress(session.app, project=session.project))


@egress.command("allow")
@_destinations
@shared
def allow(session: Session, destinations: tuple[str, ...]) -> None:
    """Put destinations on the list; it counts once the app is held to it (close)."""
    _change(session, allow=destinations)


@egress.command("deny")
@_destinations
@shared
def deny(session: Session, destinations: tuple[str, ...]) -> None:
    """Take destinations off the list, each as it is on it."""
    _change(session, deny=destinations)


@egress.command("close")
@click.argument("destinations", nargs=-1, metavar="[DESTINATION]...")
@shared
def close(session: Session, destinations: tuple[str, ...]) -> None:
    """Hold the app to its list, with these destinations put on it first; with an empty one it reaches nothing outside."""
    _change(session, mode="listed", allow=destinations)


@egress.command("open")
@shared
def open_(session: Session) -> None:
    """Let the app reach whatever is not closed to every VM; the list is kept for the next close."""
    _change(session, mode="open")


def _change(
    session: Session,
    *,
    mode: Literal["open", "listed"] | None = None,
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
) -> None:
    from shellwego.client.generated import EgressPatch  # noqa: PLC0415

    patch = EgressPatch(mode=mode, allow=[_parsed(each) for each in allow], deny=[_parsed(each) for each in deny])
    changed = session.client.change_egress(session.app, patch, project=session.project)
    _show(session, changed)
    if changed.mode == "open" and (allow or deny):
        session.say("the app is not held to this list yet: swg egress close")


def _parsed(text: str) -> DestinationBody:
    from shellwego.client.generated import DestinationBody  # noqa: PLC0415

    match = _DESTINATION.fullmatch(text)
    if match is None:
        raise click.UsageError(
            f"{text!r} is not NETWORK[:PORTS][/PROTOCOL], such as 203.0.113.0/24:443/tcp;"
            " a protocol is any, tcp, udp or icmp."
        )
    ports, protocol = ports_and_protocol(match)
    return DestinationBody(network=match["network"], protocol=protocol, ports=ports)


def _show(session: Session, view: EgressView) -> None:
    import msgspec  # noqa: PLC0415

    listed = view.mode == "listed"
    session.say("held to this list:" if listed else "open; the list, which is not in force:")
    rows = [
        {"network": each.network, "protocol": each.protocol, "ports": each.ports or "all"} for each in view.destinations
    ]
    empty = "nothing is on it" + (": the app reaches nothing outside of its private network" if listed else "")
    show(session, msgspec.to_builtins(view), rows, name="network", empty=empty)
