"""`swg exec`, `console` and `run`: commands inside microVMs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import FAILED, INTERRUPTED, USAGE, Failure
from shellwego.cli.output import show_one
from shellwego.cli.progress import StageProgress
from shellwego.cli.session import Session, shared
from shellwego.cli.text import printable

if TYPE_CHECKING:
    from shellwego.client.generated import InstanceView

_pass_through = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_OVER = "stopped,failed,lost"
_BY_ITSELF = "exited"
"""The reason code of a command that ended by itself; every other end is worth a word."""


@click.command("exec", context_settings=_pass_through)
@click.option("-t", "--tty", is_flag=True, help="With a terminal. [when stdin and stdout are terminals]")
@click.option("--instance", metavar="ID", help="This instance. [the first healthy one]")
@click.option("--process", metavar="NAME", help="An instance of this process.")
@click.argument("command", nargs=-1, required=True)
@shared
def exec_(session: Session, tty: bool, instance: str | None, process: str | None, command: tuple[str, ...]) -> None:
    """Run a command in a running instance, and end with its exit code."""
    _attach(session, command, instance=instance, process=process, terminal=tty or _both_terminals())


@click.command()
@click.option("--shell", default="", metavar="PATH", help="The shell. [bash where there is one, else sh]")
@click.option("--instance", metavar="ID", help="This instance. [the first healthy one]")
@shared
def console(session: Session, shell: str, instance: str | None) -> None:
    """Open a shell in a running instance."""
    if not _both_terminals():
        raise Failure("the console needs a terminal", code=USAGE, resolution="Use: swg exec -- COMMAND")
    start = (shell,) if shell else ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash || exec sh")
    _attach(session, start, instance=instance, process=None, terminal=True)


def _both_terminals() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _attach(
    session: Session, command: tuple[str, ...], *, instance: str | None, process: str | None, terminal: bool
) -> None:
    import shutil  # noqa: PLC0415

    from shellwego.cli.attachment import attach  # noqa: PLC0415
    from shellwego.client.streams import open_exec  # noqa: PLC0415

    rows, columns = (size := shutil.get_terminal_size()).lines, size.columns
    with open_exec(
        session.client,
        session.app,
        command,
        project=session.project,
        instance=instance,
        process=process,
        rows=rows if terminal else 0,
        columns=columns if terminal else 0,
    ) as stream:
        raise click.exceptions.Exit(attach(stream, terminal=terminal))


@click.command(context_settings=_pass_through)
@click.option("--process", metavar="NAME", help="Whose size and environment it gets. [web]")
@click.option("--memory", metavar="SIZE", help="Memory, such as 512m.")
@click.option("--detach", is_flag=True, help="Return at once, with the instance's id.")
@click.argument("command", nargs=-1, required=True)
@shared
def run(session: Session, process: str | None, memory: str | None, detach: bool, command: tuple[str, ...]) -> None:
    """Run a one-off command in a microVM of its own, with the app's image and environment; ends with its exit code."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import RunCreate  # noqa: PLC0415

    body = RunCreate(command=list(command), process=process, memory=memory)
    instance = session.client.create_run(session.app, body, project=session.project)
    if detach:
        if session.output == "table":
            click.echo(instance.id)
        else:
            show_one(session, msgspec.to_builtins(instance), {}, name=instance.id)
        return
    try:
        instance = _follow_run(session, instance)
    except KeyboardInterrupt:
        session.client.stop_run(session.app, instance.id, project=session.project)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if instance.exit_code is None or (instance.reason_code != _BY_ITSELF and instance.reason):
        code = FAILED if instance.exit_code is None else instance.exit_code
        raise Failure(instance.reason or f"the run ended as {instance.phase}", code=code)
    raise click.exceptions.Exit(instance.exit_code)


def _follow_run(session: Session, instance: InstanceView) -> InstanceView:
    progress = StageProgress(session)
    while instance.phase in ("pending", "assigned") or (instance.phase == "starting" and instance.detail != "checks"):
        progress.update(instance.phase, instance.detail or instance.reason)
        states = f"healthy,unhealthy,{_OVER}"
        instance = session.client.wait_instance(
            session.app, instance.id, project=session.project, state=states, timeout=1
        )
    progress.update("running")
    _print_output(session, instance)
    while instance.phase not in _OVER.split(","):
        instance = session.client.wait_instance(session.app, instance.id, project=session.project, timeout=20)
    return instance


def _print_output(session: Session, instance: InstanceView) -> None:
    """All that it writes. How it ended matters more than a log that cannot be read, such as that of a VM that never was."""
    from shellwego.client.streams import open_logs  # noqa: PLC0415
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415
    from shellwego.wire.streams import RecordKind  # noqa: PLC0415

    query = {"project": session.project, "instance": instance.id, "follow": True, "tail": 10_000}
    try:
        with open_logs(session.client, session.app, query) as stream:
            for record in stream:
                if record.kind is RecordKind.LOG:
                    _echo(record.payload)
    except ApiProblem as problem:
        session.say(f"its output cannot be read: {problem.detail}")


def _echo(payload: bytes) -> None:
    import msgspec  # noqa: PLC0415

    line = msgspec.msgpack.decode(payload)
    if line.get("stream") != "system":
        click.echo(printable(line.get("text", "")), err=line.get("stream") == "stderr")
