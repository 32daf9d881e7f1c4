"""`swg volumes backup`, `backups` and `policy`: copies of volumes elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import FAILED, TIMED_OUT, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, moment, show, show_one, show_removed, size
from shellwego.cli.presence import look_first
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import BackupPolicyView, BackupView

_POLL_S = 20.0
_WAIT_S = 24 * 3600.0
_ENDED = ("available", "failed", "deleting")
_HOUR_S = 3600
_detach = click.option("--detach", is_flag=True, help="Do not wait until it is done.")


@click.command("backup")
@click.argument("name")
@click.option("--description", default="", help="What people are to know of it.")
@click.option("--freeze", is_flag=True, help="Have the guest's file system at rest at that moment.")
@_detach
@shared
@about_no_app
def take_backup(session: Session, name: str, description: str, freeze: bool, detach: bool) -> None:
    """Take a backup of a volume, also while it is in use. What the repository has of it already is not sent again."""
    from shellwego.client.generated import BackupCreate  # noqa: PLC0415

    body = BackupCreate(description=description, freeze=freeze)
    taken = session.client.create_backup(name, body, project=session.project)
    _show(session, taken if detach else _ended(session, name, taken))


@click.group("backups", cls=NounGroup)
def backups() -> None:
    """List, show, verify and remove the backups of a volume."""


@backups.command("ls")
@click.argument("name")
@shared
@about_no_app
def list_backups(session: Session, name: str) -> None:
    """List a volume's backups, the newest first."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_backups(name, project=session.project, limit=MOST, cursor=cursor))
    rows = [_row(backup) for backup in found]
    show(session, msgspec.to_builtins(found), rows, name="id", empty=f"no backups yet: swg volumes backup {name}")


@backups.command("show")
@click.argument("name")
@click.argument("id_", metavar="ID")
@shared
@about_no_app
def show_backup(session: Session, name: str, id_: str) -> None:
    """Show one backup of a volume."""
    _show(session, session.client.get_backup(name, id_, project=session.project))


@backups.command("verify")
@click.argument("name")
@click.argument("id_", metavar="ID")
@_detach
@shared
@about_no_app
def verify_backup(session: Session, name: str, id_: str, detach: bool) -> None:
    """Read a backup back and check all of it. Fails where something is damaged, and says what."""
    seen = session.client.verify_backup(name, id_, project=session.project)
    deadline = time.monotonic() + _WAIT_S
    while seen.verifying and not detach:
        if time.monotonic() > deadline:
            raise Failure(f"{id_} is still being checked", code=TIMED_OUT)
        seen = session.client.wait_backup(
            name, id_, project=session.project, state="", version=seen.version, timeout=_POLL_S
        )
    if not detach and (seen.damage or seen.reason):
        raise Failure(seen.damage or f"it could not be checked: {seen.reason}", code=FAILED)
    _show(session, seen)


@backups.command("rm")
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@shared
@about_no_app
def remove_backups(session: Session, name: str, ids: tuple[str, ...]) -> None:
    """Let backups of a volume go."""
    look_first(session, ids, lambda id_: session.client.get_backup(name, id_, project=session.project))
    session.confirm(f"Remove {', '.join(ids)} of {name}? This cannot be undone.")
    for id_ in ids:
        session.client.delete_backup(name, id_, project=session.project)
        session.say(f"{id_} is being removed")
    show_removed(session, *ids)


@click.command("policy")
@click.argument("name")
@click.option("--every", "hours", type=click.IntRange(1, 744), metavar="HOURS", help="From one backup to the next.")
@click.option("--daily", type=click.IntRange(0), help="Of how many days the newest is kept.")
@click.option("--weekly", type=click.IntRange(0), help="Of how many weeks.")
@click.option("--monthly", type=click.IntRange(0), help="Of how many months.")
@click.option("--off", is_flag=True, help="Take none by itself any more; those that there are stay.")
@shared
@about_no_app
def backup_policy(
    session: Session,
    name: str,
    hours: int | None,
    daily: int | None,
    weekly: int | None,
    monthly: int | None,
    off: bool,
) -> None:
    """Show by what policy a volume is backed up by itself; or set it: what is not given is 24 hours, 7 days, 4 weeks, 12
    months."""
    from shellwego.client.generated import BackupPolicyBody  # noqa: PLC0415

    given = {"daily": daily, "weekly": weekly, "monthly": monthly, "every_s": hours and hours * _HOUR_S}
    wish = {key: value for key, value in given.items() if value is not None}
    if off:
        if wish:
            raise click.UsageError("--off goes with no other option.")
        session.client.remove_backup_policy(name, project=session.project)
        session.say(f"{name} is backed up by itself no more")
        show_removed(session, f"{name}/backup-policy")
        return
    if wish:
        _show_policy(session, session.client.set_backup_policy(name, BackupPolicyBody(**wish), project=session.project))
    else:
        _show_policy(session, session.client.get_backup_policy(name, project=session.project))


def _ended(session: Session, name: str, backup: BackupView) -> BackupView:
    """The backup once it is there.

    Raises:
        Failure: it cannot be had.
    """
    deadline = time.monotonic() + _WAIT_S
    while backup.state not in _ENDED:
        if time.monotonic() > deadline:
            raise Failure(f"{backup.id} is still {backup.state}", code=TIMED_OUT)
        states = ",".join(_ENDED)
        backup = session.client.wait_backup(name, backup.id, project=session.project, state=states, timeout=_POLL_S)
    if backup.state != "available":
        raise Failure(f"the backup could not be taken: {backup.reason or backup.state}", code=FAILED)
    return backup


def _row(backup: BackupView) -> dict[str, object]:
    return {
        "id": backup.id,
        "state": "verifying" if backup.verifying else backup.state,
        "kind": "incremental" if backup.parent_id else "full",
        "size": size(backup.size_bytes),
        "stored": size(backup.stored_bytes),
        "by": "policy" if backup.scheduled else "hand",
        "age": age(backup.created_at),
        "description": backup.description,
        "trouble": backup.damage or backup.reason,
    }


def _show(session: Session, backup: BackupView) -> None:
    import msgspec  # noqa: PLC0415

    checked = age(backup.verified_at) if backup.verified_at else "never"
    pairs = {**_row(backup), "frozen": backup.freeze, "verified": checked, "digest": backup.digest}
    show_one(session, msgspec.to_builtins(backup), pairs, name=backup.id)


def _show_policy(session: Session, policy: BackupPolicyView) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        "every": f"{policy.every_s / _HOUR_S:g} hours",
        "kept": f"{policy.daily} days, {policy.weekly} weeks, {policy.monthly} months",
        "next": moment(policy.next_at),
    }
    show_one(session, msgspec.to_builtins(policy), pairs, name=policy.volume_id)
