"""`swg keys`: the master key that secrets are sealed under, for operators of the platform."""

from __future__ import annotations

import click

from shellwego.cli.failure import NOT_FOUND, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one
from shellwego.cli.session import Session, about_no_app, shared


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def keys() -> None:
    """List, rotate and retire versions of the platform's master key."""


@keys.command("ls")
@shared
@about_no_app
def list_keys(session: Session) -> None:
    """List the versions, with how many data keys are still under each."""
    import msgspec  # noqa: PLC0415

    found = session.client.list_master_keys()
    rows = [
        {
            "name": key.name,
            "state": "current" if key.current else "retired" if key.retired_at else "old",
            "data keys": key.data_keys,
            "age": age(key.created_at),
        }
        for key in found.data
    ]
    show(session, msgspec.to_builtins(found), rows, empty=f"nothing is sealed yet; the current one is {found.current}")


@keys.command("rotate")
@shared
@about_no_app
def rotate_key(session: Session) -> None:
    """Make a new version; what is stored is moved under it in the background."""
    import msgspec  # noqa: PLC0415

    key = session.client.rotate_master_key()
    session.say("rotated; data keys are moved in the background: swg keys ls")
    show_one(session, msgspec.to_builtins(key), {"name": key.name}, name=key.name)


@keys.command("retire")
@click.argument("name")
@shared
@about_no_app
def retire_key(session: Session, name: str) -> None:
    """Let an old version go; refused while anything is under it. Backups that need it cannot be opened any more."""
    from shellwego.client.generated import MasterKeyBody  # noqa: PLC0415

    if not session.yes and name not in {key.name for key in session.client.list_master_keys().data}:
        raise Failure(f"there is no master key “{name}”", code=NOT_FOUND, resolution="See: swg keys ls")
    session.confirm(f"Retire the master key {name}? Older backups of the database open nothing without it.")
    session.client.retire_master_key(MasterKeyBody(name=name))
    session.say(f"{name} is retired")
