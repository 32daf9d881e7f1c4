"""`swg events`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from shellwego.cli.durations import moment_ago
from shellwego.cli.output import moment, show, show_next
from shellwego.cli.session import Session, shared
from shellwego.client.text import one_line

if TYPE_CHECKING:
    from shellwego.client.generated import EventView
    from shellwego.client.streams import ServerSentEvent

_PAGE = 100


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with each new event.")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--since", metavar="AGE", help="Only events younger than this, such as 90s, 10m, 2h.")
@click.option("--type", "kind", metavar="TYPE", help="Only events of this type, such as app.deployment.failed.")
@shared
def events(session: Session, follow: bool, limit: int, since: str | None, kind: str | None) -> None:
    """Show what happened, the oldest first; with -a of one app and its instances."""
    import msgspec  # noqa: PLC0415

    app = session.client.get_app(session.app_option, project=session.project).id if session.app_option else None
    moment = moment_ago(since)
    newest = session.client.list_events(project=session.project, limit=1).data if follow else []
    found = _last(session, limit, kind, app, moment)
    if not follow:
        empty = "nothing yet" if (kind, app, moment) == (None, None, None) else "none match"
        show(session, msgspec.to_builtins(found), [_row(event) for event in found], name="seq", empty=empty)
        return
    for event in found:
        _print(session, event)
    _follow(session, str(max((event.seq for event in (*found, *newest)), default=0)), kind, app)


def _last(session: Session, limit: int, kind: str | None, app: str | None, since: float | None) -> list[EventView]:
    """The last events of this type and app, the oldest first."""
    found: list[EventView] = []
    cursor: str | None = None
    while True:
        page = session.client.list_events(
            project=session.project,
            type=kind,
            time_gte=since,
            limit=_PAGE if app else min(limit, _PAGE),
            cursor=cursor,
        )
        found += [event for event in page.data if _about(event, app)]
        cursor = page.pagination.next_cursor
        if len(found) >= limit or not page.pagination.has_more:
            return found[:limit][::-1]


def _about(event: EventView, app: str | None) -> bool:
    return app is None or event.data.get("app") == app


def _follow(session: Session, last: str, kind: str | None, app: str | None) -> None:
    from shellwego.cli.following import followed  # noqa: PLC0415
    from shellwego.client.generated import EventView  # noqa: PLC0415
    from shellwego.client.transport import decode  # noqa: PLC0415

    def begin() -> Iterator[ServerSentEvent]:
        return session.client.stream_events(project=session.project, last_event_id=last)

    for message in followed(session.say, begin):
        last = message.id or last
        event = decode(message.data.encode(), EventView)
        if (kind is None or event.type == kind) and _about(event, app):
            _print(session, event)


def _row(event: EventView) -> dict[str, object]:
    known = ("", event.resource, event.data.get("app") if "name" in event.data else "")
    details = " ".join(f"{name}={value}" for name, value in event.data.items() if value not in known)
    return {
        "seq": event.seq,
        "time": moment(event.time),
        "severity": event.severity,
        "type": event.type,
        "resource": event.resource,
        "details": details,
    }


def _print(session: Session, event: EventView) -> None:
    import msgspec  # noqa: PLC0415

    text = "  ".join(one_line(str(cell)) for cell in _row(event).values())
    show_next(session, msgspec.to_builtins(event), text)
