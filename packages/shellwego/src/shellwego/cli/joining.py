"""`swg nodes join-token`, `keys` and `authorities`: how hosts come to the platform, seen from an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.labels import labels_of
from shellwego.cli.output import age, moment, show, show_one
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import JoinTokenView, NewJoinTokenView, NodeAuthorityView, NodeKeyView

V = TypeVar("V", "JoinTokenView", "NodeKeyView", "NodeAuthorityView")
_HELP = {"help_option_names": ["-h", "--help"]}
_SHOWN_OF_A_KEY = 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _list(session: Session, found: Sequence[V], row: Callable[[V], dict[str, object]], empty: str) -> None:
    import msgspec  # noqa: PLC0415

    show(session, msgspec.to_builtins(found), [row(each) for each in found], name="id", empty=empty)


def _tell(session: Session, found: V, row: Callable[[V], dict[str, object]]) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(found), row(found), name=found.id)


@click.command("join-token", context_settings=_HELP)
@click.option("--edge", is_flag=True, help="For a host that is to be an edge, and not a node.")
@click.option("--name", default="", metavar="NAME", help="What it will be called. [as its host]")
@click.option("--region", default="local", show_default=True, metavar="REGION", help="Where it stands.")
@click.option("--zone", default="local", show_default=True, metavar="ZONE", help="What of the region fails together.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="For placement; may be repeated.")
@click.option("--minutes", type=click.IntRange(1, 60), default=60, show_default=True, help="How long it is good.")
@shared
@about_no_app
def join_token(
    session: Session, edge: bool, name: str, region: str, zone: str, labels: tuple[str, ...], minutes: int
) -> None:
    """Let one host join, once. Prints the one line to run there, as root; the token in it is shown only now."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import JoinTokenCreate  # noqa: PLC0415

    body = JoinTokenCreate(
        kind="edge" if edge else "node",
        name=name,
        region=region,
        zone=zone,
        labels=labels_of(labels),
        expires_in=minutes * 60,
    )
    made = session.client.create_join_token(body)
    if session.output in ("json", "yaml"):
        show_one(session, msgspec.to_builtins(made), {}, name=made.id)
        return
    session.say(f"on the new host, as root, within {minutes} minutes:")
    click.echo(f"swg nodes join {made.url} {made.token}" + (" --edge" if edge else ""))
    if urlsplit(made.url).hostname in _LOOPBACK:
        session.say("no other host reaches that address: start the server with --node-listen ADDRESS, then ask again")


@click.group("join-tokens", cls=NounGroup, context_settings=_HELP)
def join_tokens() -> None:
    """List and revoke join tokens. To make one: swg nodes join-token."""


def _token_row(token: JoinTokenView | NewJoinTokenView) -> dict[str, object]:
    return {
        "id": token.id,
        "kind": token.kind,
        "name": token.name,
        "region": f"{token.region}/{token.zone}",
        "state": token.state,
        "used by": token.used_by,
        "made": age(token.created_at),
    }


@join_tokens.command("ls")
@shared
@about_no_app
def list_join_tokens(session: Session) -> None:
    """List join tokens, the newest first."""
    found = every(lambda cursor: session.client.list_join_tokens(limit=MOST, cursor=cursor))
    _list(session, found, _token_row, "no join tokens")


@join_tokens.command("revoke")
@click.argument("token")
@shared
@about_no_app
def revoke_join_token(session: Session, token: str) -> None:
    """Let nobody in by a join token any more, given by its id."""
    _tell(session, session.client.revoke_join_token(token), _token_row)


@click.group("keys", cls=NounGroup, context_settings=_HELP)
def keys() -> None:
    """List and revoke the keys that nodes and edges are known by."""


def _key_row(key: NodeKeyView) -> dict[str, object]:
    return {
        "id": key.id,
        "member": key.member,
        "state": "in use" if key.retired_at is None else "retired",
        "authority": key.authority,
        "until": moment(key.expires_at),
        "fingerprint": key.fingerprint[:_SHOWN_OF_A_KEY],
        "made": age(key.created_at),
    }


@keys.command("ls")
@shared
@about_no_app
def list_keys(session: Session) -> None:
    """List keys, the newest first."""
    found = every(lambda cursor: session.client.list_node_keys(limit=MOST, cursor=cursor))
    _list(session, found, _key_row, "no host has joined")


@keys.command("revoke")
@click.argument("key")
@shared
@about_no_app
def revoke_key(session: Session, key: str) -> None:
    """Let nobody in by a key any more, given by its id. Its host is shut out within a second."""
    session.confirm(f"Shut the host with the key {key} out? It must join anew; what runs there is started elsewhere.")
    _tell(session, session.client.revoke_node_key(key), _key_row)


@click.group("authorities", cls=NounGroup, context_settings=_HELP)
def authorities() -> None:
    """List, rotate and retire the authorities that sign for nodes."""


def _authority_row(authority: NodeAuthorityView) -> dict[str, object]:
    return {
        "id": authority.id,
        "state": "in use" if authority.retired_at is None else "retired",
        "keys": authority.keys,
        "fingerprint": authority.fingerprint[:_SHOWN_OF_A_KEY],
        "made": age(authority.created_at),
    }


@authorities.command("ls")
@shared
@about_no_app
def list_authorities(session: Session) -> None:
    """List the authorities, the newest first."""
    found = session.client.list_node_authorities().data
    _list(session, found, _authority_row, "none yet; the first join token makes it")


@authorities.command("rotate")
@shared
@about_no_app
def rotate_authority(session: Session) -> None:
    """Make another authority, which signs from now on; retire the one before when no key needs it."""
    _tell(session, session.client.rotate_node_authority(), _authority_row)


@authorities.command("retire")
@click.argument("authority")
@shared
@about_no_app
def retire_authority(session: Session, authority: str) -> None:
    """Believe an authority no more; refused while keys have certificates of it."""
    session.confirm(f"Retire the node authority {authority}? Its key is destroyed.")
    _tell(session, session.client.retire_node_authority(authority), _authority_row)
