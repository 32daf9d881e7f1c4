"""`swg nodes join`: makes this host a node, or an edge, of a platform that is elsewhere.

First everything is looked at that could be in the way, and told at once with its remedy; only a host that is ready asks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

_NOT_READY = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.argument("token")
@click.option("--edge", is_flag=True, help="Join as an edge, and not as a node.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where this host's key and certificate are kept. [/etc/shellwego/node; /etc/shellwego/edge]",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("/var/lib"),
    help="Where everything else will be kept; looked at for room only. [/var/lib]",
)
@click.option("--http-port", type=int, help="With --edge: the port where apps will be reached. [80]")
@click.option("--check", "only_check", is_flag=True, help="Only look whether this host could join.")
@click.option("--no-color", is_flag=True, envvar="NO_COLOR", help="No colours.")
def join(
    *,
    url: str,
    token: str,
    edge: bool,
    directory: Path | None,
    data_dir: Path,
    http_port: int | None,
    only_check: bool,
    no_color: bool,
) -> None:
    """Make this host a node of the platform at URL, by the TOKEN that `swg nodes join-token` printed there; as root.

    Its key is made here and never leaves this host. A TOKEN of - is read from stdin.
    """
    from shellwego.boot import joincall, joinchecks, nodedir  # noqa: PLC0415 - heavy, and not needed for --help
    from shellwego.boot.doctor import print_findings  # noqa: PLC0415
    from shellwego.boot.findings import State  # noqa: PLC0415
    from shellwego.boot.parts import EDGE_DEFAULTS  # noqa: PLC0415
    from shellwego.boot.up import UpFailure, up_settings  # noqa: PLC0415
    from shellwego.core.errors import InvalidError, ShellWeGoError  # noqa: PLC0415
    from shellwego.core.joins import MemberKind, split_token  # noqa: PLC0415

    kind = MemberKind.EDGE if edge else MemberKind.NODE
    default = nodedir.DEFAULTS[kind]
    directory = directory or default
    try:
        address = joincall.parse_address(url)
        parts = split_token(sys.stdin.readline().strip() if token == "-" else token)  # noqa: S105 - no token
        if parts is None:
            raise InvalidError("bad-token", "TOKEN is no join token: it begins with join_ and has 112 characters")
        settings = up_settings({"http_port": http_port}, EDGE_DEFAULTS if edge else {})
        found = joinchecks.check_this_host(kind, directory, data_dir, settings)
        of_server, authority = joinchecks.check_server(address, parts[1])
        found += of_server
        print_findings(found, quiet=False, color=not no_color and sys.stdout.isatty())
        if any(finding.state is State.FAIL for finding in found):
            click.echo("This host is not ready; nothing was asked of the platform.", err=True)
            raise click.exceptions.Exit(_NOT_READY)
        if only_check:
            return
        member = nodedir.become(directory, address, authority, parts[0], kind)
    except ShellWeGoError as error:
        raise UpFailure(error) from error
    command = "edge" if edge else "agent"
    options = f" --dir {directory}" if directory != default else ""
    options += f" --http-port {http_port}" if edge and http_port else ""
    click.echo(
        f"This host is the {member.kind} {member.name} ({member.id}) in {member.region}/{member.zone}"
        + (f", with {member.subnet} for its VMs" if member.subnet else "")
        + f".\nNext: swg install {command}{options}, or in the foreground: swg {command}{options}"
    )
