"""`swg audit`: who did what, or was refused it, and whether the record of it still holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, BinaryIO

import click

from shellwego.cli.durations import moment_ago
from shellwego.cli.failure import FAILED, USAGE, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import moment, show, show_one
from shellwego.cli.session import Session, about_no_app, shared

if TYPE_CHECKING:
    from shellwego.client.generated import AuditView

_PAGE = 100
_since = click.option("--since", metavar="AGE", help="Only what is younger than this, such as 90s, 10m, 2h.")


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def audit() -> None:
    """Show, export and verify who did what, or was refused it."""


@audit.command("ls")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--actor", metavar="ID", help="Only what this user or service account did.")
@click.option("--action", metavar="PERMISSION", help="Only this, such as apps:write.")
@click.option("--resource", metavar="ID", help="Only what was done to this.")
@_since
@shared
@about_no_app
def list_audit(
    session: Session,
    limit: int,
    actor: str | None,
    action: str | None,
    resource: str | None,
    since: str | None,
) -> None:
    """List who did what, the newest first."""
    import msgspec  # noqa: PLC0415

    found: list[AuditView] = []
    cursor: str | None = None
    moment = moment_ago(since)
    while len(found) < limit:
        page = session.client.list_audit(
            project=session.place,
            organization=session.organization,
            actor=actor,
            action=action,
            resource=resource,
            time_gte=moment,
            limit=min(limit - len(found), _PAGE),
            cursor=cursor,
        )
        found += page.data
        cursor = page.pagination.next_cursor
        if not page.pagination.has_more:
            break
    show(session, msgspec.to_builtins(found), [_row(record) for record in found], name="id", empty="nothing yet")


def _row(record: AuditView) -> dict[str, object]:
    return {
        "time": moment(record.time),
        "actor": record.actor,
        "action": record.action,
        "allowed": record.allowed,
        "resource": record.resource,
        "detail": record.detail,
        "id": record.id,
    }


@audit.command("export")
@click.argument("file", type=click.File("wb"), default="-")
@_since
@shared
@about_no_app
def export_audit(session: Session, file: BinaryIO, since: str | None) -> None:
    """Write all records, a line of JSON each, the oldest first, to FILE or stdout."""
    moment = moment_ago(since)
    lines = session.client.export_audit(project=session.place, organization=session.organization, time_gte=moment)
    last = b""
    try:
        for line in lines:
            if last:
                file.write(last)
            last = line
    except click.FileError as error:  # it is opened by the first write: what is there stays where nothing comes
        raise Failure(f"{error.ui_filename} cannot be written: {error.message}", code=USAGE) from error
    end = json.loads(last) if last.endswith(b"\n") else {}
    if not end.get("complete"):
        raise Failure("the export was cut off", code=FAILED, resolution="Run it again.")
    session.say(f"{end['records']} records")


@audit.command("verify")
@click.option(
    "--anchor", metavar="CHAIN/NUMBER:HASH", help="Must still hold: a head that an earlier verification showed."
)
@shared
@about_no_app
def verify_audit(session: Session, anchor: str | None) -> None:
    """Check that no record was changed, removed, slipped in or moved; ends with 1 where one was.

    Keep a head that is shown elsewhere: given as --anchor later, it proves that nothing up to it was made anew.
    """
    import msgspec  # noqa: PLC0415

    found = session.client.verify_audit(project=session.place, organization=session.organization, anchor=anchor)
    heads = " ".join(f"{head.position}:{head.hash}" for head in found.heads)
    pairs = {"sound": found.sound, "checked": found.checked, "pending": found.pending, "heads": heads}
    show_one(session, msgspec.to_builtins(found), pairs, name="yes" if found.sound else "no")
    if found.broken is not None:
        where = f"{found.broken.position} ({found.broken.id or 'no record'})"
        raise Failure(f"the chain breaks at {where}: {found.broken.fault}: {found.broken.message}", code=FAILED)
