"""The root of the command line: the nouns, and how a server is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import click

from plasmavmc.cli.connection import Connection
from plasmavmc.cli.lazy import LazyGroup

COMMANDS: Mapping[str, tuple[str, str]] = {
    "vm": ("plasmavmc.cli.vm:vm", "Run, start, stop, look at and enter microVMs."),
    "image": ("plasmavmc.cli.image:image", "Pull, load, list and remove images."),
    "node": ("plasmavmc.cli.node:node", "Show this host: capacity, use and backends."),
    "serve": ("plasmavmc.cli.serve:serve", "Serve this host's microVMs over gRPC, in the foreground."),
    "doctor": ("plasmavmc.cli.doctor:doctor", "Check whether this host can run microVMs, and say what to do."),
    "kernel": ("plasmavmc.cli.kernel:kernel", "Fetch the guests' kernel."),
    "guest": ("plasmavmc.cli.guest:guest", "Build what runs in a microVM beside the workload."),
    "completion": ("plasmavmc.cli.completion:completion", "Print a completion script for bash, zsh or fish."),
}

_OF_VMS = ("run", "create", "start", "stop", "suspend", "resume", "fork", "rm", "ls", "inspect", "logs", "exec", "cp")
HINTS: Mapping[str, str] = {
    **{word: f"vm {word}" for word in (*_OF_VMS, "attach")},
    **{"ps": "vm ls", "pull": "image pull", "load": "image load", "images": "image ls", "info": "node info"},
}
_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--server",
        metavar="ADDRESS",
        envvar="PLASMAVMC_SERVER",
        default="unix:/run/plasmavmc/plasmavmc.sock",
        show_default=True,
        help="unix:PATH, or HOST:PORT with --tls-ca, and --tls-cert and --tls-key or a token.",
    ),
    click.option(
        "--project",
        metavar="ORG/PROJECT",
        envvar="PLASMAVMC_PROJECT",
        default="",
        help="Whose things are meant. [root by the socket: default/default; else: the caller's only one]",
    ),
    click.option(
        "--token-file",
        type=_FILE,
        envvar="PLASMAVMC_TOKEN_FILE",
        help="A file that holds the token; PLASMAVMC_TOKEN holds it itself.",
    ),
    click.option("--tls-cert", type=_FILE, envvar="PLASMAVMC_TLS_CERT", help="Our certificate (PEM)."),
    click.option("--tls-key", type=_FILE, envvar="PLASMAVMC_TLS_KEY", help="Its private key (PEM)."),
    click.option("--tls-ca", type=_FILE, envvar="PLASMAVMC_TLS_CA", help="The authority of the server's certificate."),
    click.version_option(None, "-V", "--version", package_name="plasmavmc", prog_name="plasmavmc"),
    click.pass_context,
)


def _root(ctx: click.Context, **given: Any) -> None:
    """PlasmaVMC: microVMs on one host."""
    ctx.obj = Connection(**given)


main = click.command(
    "plasmavmc",
    cls=LazyGroup,
    commands=COMMANDS,
    hints=HINTS,
    help="PlasmaVMC: microVMs on one host, as simple as containers.",
)(reduce(lambda function, option: option(function), reversed(_OPTIONS), _root))
