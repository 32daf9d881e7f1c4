"""`swg install`: has systemd run a process of the platform on this host."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

import click

from shellwego.boot.units import KINDS, unit, unit_name
from shellwego.boot.up import UpFailure, settings_elsewhere
from shellwego.core.errors import InvalidError
from shellwego.drivers.files import replace_file

UNITS = Path("/etc/systemd/system")
_DIRECTORY = "directory"
"""The option of a host that joined which is no setting."""
_COMMANDS = {
    "up": ("up:up", ""),
    "server": ("parts:server", "SERVER_DEFAULTS"),
    "agent": ("parts:agent", "AGENT_DEFAULTS"),
    "edge": ("parts:edge", "EDGE_DEFAULTS"),
}
"""Where a process's command is, and what its settings are where nothing is said."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and write nothing.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=UNITS,
    show_default=True,
    help="The directory that the unit is written to.",
)
def install(kind: str, arguments: tuple[str, ...], only_print: bool, into: Path) -> None:
    """Write the systemd unit of `swg KIND ARGUMENTS`, and print what is left to do.

    KIND is up, server, agent or edge; ARGUMENTS are that command's own, with paths from the root on. A unit that is there is
    replaced. What runs is left running when the unit is stopped.
    """
    _check(kind, arguments)
    text = unit(kind, _program(), arguments)
    if only_print:
        click.echo(text, nl=False)
        return
    path = into / unit_name(kind)
    try:
        replace_file(path, text.encode(), 0o644)
    except OSError as error:
        mend = f"Make {into}, or name another directory" if isinstance(error, FileNotFoundError) else "Run it as root"
        raise click.ClickException(f"{path}: {error.strerror}\n  → {mend}, or only look: --print") from error
    click.echo(text, nl=False)
    click.echo(
        f"Written to {path}. Next:\n  systemctl daemon-reload\n  systemctl enable --now {unit_name(kind)}\n"
        f"  journalctl -fu {unit_name(kind)}"
    )


def _check(kind: str, arguments: tuple[str, ...]) -> None:
    """Refuse what the command would refuse at each start, and paths that mean something here only."""
    target, defaults = _COMMANDS[kind]
    name, _, attribute = target.partition(":")
    module = import_module(f"shellwego.boot.{name}")
    command = getattr(module, attribute)
    context = command.make_context(f"swg {kind}", list(arguments))
    paths = [parameter for parameter in command.params if isinstance(parameter.type, click.Path)]
    for parameter in paths:
        value = context.params.get(parameter.name)
        if value is not None and not Path(str(value)).is_absolute():
            raise click.UsageError(f"{parameter.opts[0]} {value}: give the path from the root on.")
    if any(not word.isprintable() for word in arguments):
        raise click.UsageError("An argument has characters that cannot stand in a unit.")
    flags = {name: value for name, value in context.params.items() if name != _DIRECTORY}
    try:
        settings = settings_elsewhere(flags, getattr(module, defaults) if defaults else {})
        if kind == "server" and settings is not None:
            module.check_server(settings)
    except InvalidError as error:
        raise UpFailure(error) from error


def _program() -> Path:
    """This program, by a path that holds without a PATH."""
    beside = Path(sys.executable).with_name("swg")
    found = str(beside) if beside.exists() else shutil.which("swg")
    return Path(found or sys.argv[0]).absolute()
