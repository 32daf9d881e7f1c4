"""`swg ports`: ports of the nodes' addresses that lead to an app."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import NOT_FOUND, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one, show_removed
from shellwego.cli.session import Session, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import PortView

_PORT = re.compile(r"(\d{1,5})(?::(\d{1,5}))?(?:/(tcp|udp))?", re.ASCII)
_MOST_PORT = 65_535


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def ports() -> None:
    """Publish ports of an app on the nodes' addresses, list and close them."""


@ports.command("publish")
@click.argument("port", metavar="PORT[:TARGET][/tcp|udp]")
@click.option("--process", default="", help="Whose instances answer. [the only one that can be meant]")
@shared
def publish_port(session: Session, port: str, process: str) -> None:
    """Have PORT of every node's addresses lead to port TARGET (else the same) of the app's healthy instances."""
    from shellwego.client.generated import PortPublish  # noqa: PLC0415

    number, target, protocol = _parsed(port)
    body = PortPublish(port=number, protocol=protocol, target_port=target, process=process)
    _show(session, session.client.publish_port(session.app, body, project=session.project))


@ports.command("ls")
@shared
def list_ports(session: Session) -> None:
    """List the app's published ports."""
    import msgspec  # noqa: PLC0415

    found = _all(session)
    rows = [_row(published) for published in found]
    show(session, msgspec.to_builtins(found), rows, name="id", empty="no ports yet: swg ports publish PORT")


@ports.command("show")
@click.argument("port", metavar="PORT[/tcp|udp]|ID")
@shared
def show_port(session: Session, port: str) -> None:
    """Show a published port of the app."""
    _show(session, session.client.get_port(session.app, _id(session, port), project=session.project))


@ports.command("unpublish")
@click.argument("port", metavar="PORT[/tcp|udp]|ID")
@shared
def unpublish_port(session: Session, port: str) -> None:
    """Close a published port of the app on all nodes. Connections through it end."""
    id_ = _id(session, port)
    session.confirm(f"Close {port}? Connections through it end.")
    session.client.unpublish_port(session.app, id_, project=session.project)
    session.say(f"{port} is closed")
    show_removed(session, port)


def _parsed(text: str) -> tuple[int, int | None, str]:
    match = _PORT.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text[:40]!r} is not like 25432, 25432:5432 or 25432:53/udp.", param_hint="PORT")
    numbers = int(match[1]), int(match[2]) if match[2] else None
    if not all(number is None or 1 <= number <= _MOST_PORT for number in numbers):
        raise click.BadParameter(f"{text!r}: ports are from 1 to {_MOST_PORT}.", param_hint="PORT")
    return *numbers, match[3] or "tcp"


def _id(session: Session, text: str) -> str:
    """The id of a port that is named by its number; an id is left as it is."""
    if _PORT.fullmatch(text) is None:
        return text
    number, target, protocol = _parsed(text)
    if target is not None:
        raise click.BadParameter("It is named by its number alone, without a target.", param_hint="PORT")
    found = [each for each in _all(session) if (each.port, each.protocol) == (number, protocol)]
    if not found:
        raise Failure(f"the app has not published {number}/{protocol}", code=NOT_FOUND, resolution="See: swg ports ls")
    return found[0].id


def _all(session: Session) -> list[PortView]:
    client, app, project = session.client, session.app, session.project
    return every(lambda cursor: client.list_ports(app, project=project, limit=MOST, cursor=cursor))


def _row(published: PortView) -> dict[str, object]:
    return {
        "id": published.id,
        "port": f"{published.port}/{published.protocol}",
        "process": published.process,
        "target": published.target_port,
        "age": age(published.created_at),
    }


def _show(session: Session, published: PortView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(published), _row(published), name=published.id)
