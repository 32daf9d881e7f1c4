"""`plasmavmc vm exec|attach`: into a VM that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plasmavmc.cli import values
from plasmavmc.cli.connection import connection
from plasmavmc.cli.ends import INTERRUPTED, RUN_FAILED, Failure
from plasmavmc.cli.find import find
from plasmavmc.cli.joining import Detached, How, Interrupted, join
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import say
from plasmavmc.cli.terminal import DEFAULT_KEYS, parse_keys, size_of_terminal
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.guest.api import ExecSession
    from plasmavmc.rpc.client import EngineClient

_keys = click.option("--detach-keys", default=DEFAULT_KEYS, show_default=True, metavar="KEYS", help="What lets go.")
_OPEN = ("open", "terminal")


@click.command("exec", context_settings={**HELP, "allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="NAME alone: the value it has here.")
@click.option("--env-file", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Lines NAME=VALUE.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Whom to run as. [the VM's]")
@click.option("-w", "--workdir", metavar="DIR", help="Where to run. [the VM's]")
@_keys
@click.argument("vm_word", metavar="VM")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
def exec_(
    *,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_file: tuple[Path, ...],
    user: str | None,
    workdir: str | None,
    detach_keys: str,
    vm_word: str,
    command: tuple[str, ...],
) -> None:
    """Run a command in a running VM, and end with its exit code. Letting go of it ends it."""
    if interactive and tty and not sys.stdin.isatty():
        raise Failure(
            "-t: stdin is no terminal", code=RUN_FAILED, resolution="Leave -t out: -i alone passes a pipe on."
        )
    how = How(stdin=interactive, terminal=tty, keys=parse_keys(detach_keys))
    scope, variables = connection().scope(), values.environment(env_file, env)

    async def work(engine: EngineClient) -> int:
        from plasmavmc.types import ExecSpec  # noqa: PLC0415

        vm = await find(engine, vm_word, scope)
        spec = ExecSpec(command, variables, workdir, user, size_of_terminal() if tty else None)
        return await _joined(await engine.vms.exec(vm.spec.id, spec), how, "the command was let go, and is hung up")

    raise click.exceptions.Exit(with_engine(work, running=True))


@click.command(context_settings=dict(HELP))
@click.option("--no-stdin", is_flag=True, help="Only look.")
@_keys
@click.argument("vm_word", metavar="VM")
def attach(*, no_stdin: bool, detach_keys: str, vm_word: str) -> None:
    """Join a VM's own stdin and output until it ends, and end with its exit code. What it wrote before is in its logs."""
    scope, keys = connection().scope(), parse_keys(detach_keys)

    async def work(engine: EngineClient) -> int:
        vm = await find(engine, vm_word, scope)
        kind = vm.spec.stdio.value
        terminal = kind == "terminal"
        how = How(stdin=kind in _OPEN and not no_stdin, terminal=terminal, keys=keys, signals=not no_stdin)
        session = await engine.vms.attach(vm.spec.id, size_of_terminal() if terminal else None)
        return await _joined(session, how, f"{vm.spec.id} runs on")

    raise click.exceptions.Exit(with_engine(work, running=True))


async def _joined(session: ExecSession, how: How, let_go: str) -> int:
    try:
        return await join(session, how)
    except Detached:
        say(f"\r\nplasmavmc: {let_go}\r")
        return 0
    except Interrupted:
        return INTERRUPTED
    finally:
        await session.aclose()
