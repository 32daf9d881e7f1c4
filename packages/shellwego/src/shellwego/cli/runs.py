"""`swg run`: one-off commands, each in a microVM of its own.

Theory. Without a terminal or stdin the command is the microVM's workload: its output is its log, and its exit code is kept.
With them the workload only holds the microVM, and the command is run beside it over the road of `exec`, which carries
stdin, a terminal and its size. The microVM is let go when the command ends, or we do; if nobody is left to do that, it ends
by itself after a day.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import click

from shellwego.cli.failure import FAILED, INTERRUPTED, Failure
from shellwego.cli.output import show_one
from shellwego.cli.progress import StageProgress
from shellwego.cli.remote import PASS_THROUGH, both_terminals, join_command
from shellwego.cli.session import Session, shared
from shellwego.client.text import printable

if TYPE_CHECKING:
    from shellwego.client.generated import InstanceView

_OVER = "stopped,failed,lost"
_BY_ITSELF = "exited"
"""The reason code of a command that ended by itself; every other end is worth a word."""
_HOLD = ("sleep", "86400")
_NEEDS = "With -i or -t the image needs the program sleep, which holds the microVM; without it, leave out -i and -t."


@click.command(context_settings=PASS_THROUGH)
@click.option("--process", metavar="NAME", help="Whose size and environment it gets. [web]")
@click.option("--memory", metavar="SIZE", help="Memory, such as 512m.")
@click.option("--detach", is_flag=True, help="Return at once, with the instance's id.")
@click.option("-i", "--interactive", is_flag=True, help="With our stdin; on a terminal where there is one.")
@click.option("-t", "--tty", is_flag=True, help="With a terminal, and our stdin.")
@click.argument("command", nargs=-1, required=True)
@shared
def run(
    session: Session,
    process: str | None,
    memory: str | None,
    detach: bool,
    interactive: bool,
    tty: bool,
    command: tuple[str, ...],
) -> None:
    """Run a one-off command in a microVM of its own, with the app's image and environment; ends with its exit code.

    It is run in place of the image's Entrypoint, and not as its arguments. For a shell: swg run -it -- sh
    """
    if (interactive or tty) and detach:
        raise click.UsageError("--detach goes with neither --interactive nor --tty.")
    if interactive or tty:
        _run_attached(session, command, process=process, memory=memory, terminal=tty or both_terminals())
    instance = _create(session, command, process=process, memory=memory)
    if detach:
        _show_detached(session, instance)
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


def _create(session: Session, command: Iterable[str], *, process: str | None, memory: str | None) -> InstanceView:
    from shellwego.client.generated import RunCreate  # noqa: PLC0415

    body = RunCreate(command=list(command), process=process, memory=memory)
    return session.client.create_run(session.app, body, project=session.project)


def _show_detached(session: Session, instance: InstanceView) -> None:
    import msgspec  # noqa: PLC0415

    if session.output == "table":
        click.echo(instance.id)
        session.say(f"its output: swg logs -a {session.app} --instance {instance.id[-6:]}")
    else:
        show_one(session, msgspec.to_builtins(instance), {}, name=instance.id)


def _run_attached(
    session: Session, command: tuple[str, ...], *, process: str | None, memory: str | None, terminal: bool
) -> NoReturn:
    """Hold a microVM, run the command in it as `exec` does, and let it go, however this ends."""
    from shellwego.cli.attachment import ended_in_order  # noqa: PLC0415
    from shellwego.client.transport import ApiProblem, Unreachable  # noqa: PLC0415

    progress = StageProgress(session)
    with ended_in_order():
        instance = _create(session, _HOLD, process=process, memory=memory)
        try:
            instance = _until_running(session, instance, progress)
            if instance.phase in _OVER.split(","):
                raise Failure(instance.reason or f"the microVM ended as {instance.phase}", resolution=_NEEDS)
            progress.done(f"{instance.id} runs", good=True)
            join_command(session, command, instance=instance.id, process=None, terminal=terminal)
        finally:
            with contextlib.suppress(ApiProblem, Unreachable):  # it has ended already, or ends by itself
                session.client.stop_run(session.app, instance.id, project=session.project)


def _until_running(session: Session, instance: InstanceView, progress: StageProgress) -> InstanceView:
    """Wait until its VM runs, or it is over."""
    while instance.phase in ("pending", "assigned") or (instance.phase == "starting" and instance.detail != "checks"):
        progress.update(instance.phase, instance.detail or instance.reason)
        states = f"healthy,unhealthy,{_OVER}"
        instance = session.client.wait_instance(
            session.app, instance.id, project=session.project, state=states, timeout=1
        )
    return instance


def _follow_run(session: Session, instance: InstanceView) -> InstanceView:
    progress = StageProgress(session)
    instance = _until_running(session, instance, progress)
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
