"""`swg exec` and `console`: commands inside running microVMs."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.session import Session, shared

PASS_THROUGH = {"allow_interspersed_args": False}
"""What stands behind the command is its own. What stands before it must be ours: a mistyped option is not the command."""


@click.command("exec", context_settings=PASS_THROUGH)
@click.option(
    "-i", "--interactive", is_flag=True, hidden=True, expose_value=False, help="Stdin is ours without it, too."
)
@click.option("-t", "--tty", is_flag=True, help="With a terminal. [when stdin and stdout are terminals]")
@click.option("--instance", metavar="ID", help="This instance: its id, an end of it, or web.0. [the first healthy one]")
@click.option("--process", metavar="NAME", help="An instance of this process.")
@click.argument("command", nargs=-1, required=True)
@shared
def exec_(session: Session, tty: bool, instance: str | None, process: str | None, command: tuple[str, ...]) -> None:
    """Run a command in a running instance, and end with its exit code."""
    join_command(session, command, instance=instance, process=process, terminal=tty or both_terminals())


@click.command()
@click.option("--shell", default="", metavar="PATH", help="The shell. [bash where there is one, else sh]")
@click.option("--instance", metavar="ID", help="This instance: its id, an end of it, or web.0. [the first healthy one]")
@shared
def console(session: Session, shell: str, instance: str | None) -> None:
    """Open a shell in a running instance."""
    if not both_terminals():
        raise Failure("the console needs a terminal", code=USAGE, resolution="Use: swg exec -- COMMAND")
    start = (shell,) if shell else ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash || exec sh")
    join_command(session, start, instance=instance, process=None, terminal=True)


def both_terminals() -> bool:
    """Whether somebody sits at both ends of what a command reads and writes."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def join_command(
    session: Session, command: tuple[str, ...], *, instance: str | None, process: str | None, terminal: bool
) -> NoReturn:
    """Run a command in an instance with our stdin, stdout and stderr, or terminal; ends with its exit code."""
    from shellwego.cli.attachment import attach, size_of_terminal  # noqa: PLC0415
    from shellwego.client.streams import open_exec  # noqa: PLC0415

    columns, rows = size_of_terminal()
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
