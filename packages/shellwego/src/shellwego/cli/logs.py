"""`swg logs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from shellwego.cli.durations import moment_ago
from shellwego.cli.output import show, show_next
from shellwego.cli.session import Session, shared
from shellwego.client.text import printable

if TYPE_CHECKING:
    from shellwego.client.generated import LogLineView
    from shellwego.client.streams import ServerSentEvent

_MOST = 10_000
_OVER = ("stopped", "failed", "lost")


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with each new line, new instances included.")
@click.option("-n", "--tail", type=click.IntRange(0, _MOST), default=100, show_default=True, help="Last lines to show.")
@click.option("--since", metavar="AGE", help="Only lines younger than this, such as 90s, 10m, 2h.")
@click.option("--process", metavar="NAME", help="Only this process.")
@click.option("--instance", metavar="ID", help="Only this instance: its id, an end of it, or web.0.")
@shared
def logs(
    session: Session,
    name: str | None,
    follow: bool,
    tail: int,
    since: str | None,
    process: str | None,
    instance: str | None,
) -> None:
    """Show an app's output, also of instances that ended."""
    import msgspec  # noqa: PLC0415

    app, moment = session.app_named(name), moment_ago(since)
    choice = {"project": session.project, "process": process, "instance": instance}
    if not follow:
        found = session.client.get_logs(app, tail=tail, since=moment, **choice).data
        if session.output in ("json", "yaml"):
            show(session, msgspec.to_builtins(found), [])
            return
        for line in found:
            _print(session, line)
        if tail and not found:
            session.say("no output yet")
        return
    _follow(session, app, tail=tail, since=moment, process=process, instance=instance)


def _follow(
    session: Session, app: str, *, tail: int, since: float | None, process: str | None, instance: str | None
) -> None:
    from shellwego.cli.following import followed  # noqa: PLC0415
    from shellwego.cli.linesseen import LinesSeen  # noqa: PLC0415
    from shellwego.client.generated import LogLineView  # noqa: PLC0415
    from shellwego.client.transport import decode  # noqa: PLC0415

    seen, client, project = LinesSeen(), session.client, session.project

    def begin() -> Iterator[ServerSentEvent]:
        onwards = seen.onwards()
        first, most = (since, tail) if onwards is None else (onwards, _MOST)
        return client.stream_logs(app, project=project, tail=most, since=first, process=process, instance=instance)

    def over() -> bool:
        return instance is not None and _has_ended(session, app, instance)

    for event in followed(session.say, begin, over):
        if event.event in ("log", "message"):
            line = decode(event.data.encode(), LogLineView)
            instance = line.instance_id if instance else None  # the place web.0 is another's after a deploy
            if seen.is_new(line):
                _print(session, line)


def _has_ended(session: Session, app: str, instance: str) -> bool:
    """Whether no more can come of an instance, as far as the API tells it now."""
    from shellwego.client.transport import ApiProblem, Unreachable  # noqa: PLC0415

    try:
        return session.client.get_instance(app, instance, project=session.project).phase in _OVER
    except ApiProblem as problem:
        return problem.status == 404
    except Unreachable:
        return False


def _print(session: Session, line: LogLineView) -> None:
    import msgspec  # noqa: PLC0415

    when = line.time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{line.time.microsecond // 1000:03d}Z"
    head = f"{when} {line.process}[{line.instance_id[-6:]}]"
    if session.color and sys.stdout.isatty():
        head = click.style(head, fg="cyan" if line.stream == "stdout" else "yellow")
    text = line.text if line.stream != "system" else f"-- {line.text}"
    show_next(session, msgspec.to_builtins(line), f"{head} {printable(text)}")
