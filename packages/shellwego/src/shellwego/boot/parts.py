"""`swg server`, `swg agent` and `swg edge`: the parts of a platform on several hosts, each a process of its own.

They begin as `swg up` does: what only root may read is read, then root is left to the helper.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shellwego.boot.settings import UpSettings
from shellwego.boot.up import (
    UpFailure,
    begin_as_root,
    control_plane_options,
    drop_root,
    node_options,
    read_control_plane,
    up_settings,
)
from shellwego.core.errors import InvalidError, ShellWeGoError

if TYPE_CHECKING:
    from shellwego.boot.controlplane import Handover
    from shellwego.boot.preflight import Installation
    from shellwego.boot.serving import Server

F = TypeVar("F", bound=Callable[..., Any])
NODE_PORT = 7081
SHUTDOWN_DELAY_S = 5
AGENT_DATA, EDGE_DATA = "/var/lib/shellwego-agent", "/var/lib/shellwego-edge"
"""Each process has its own: a host may run several."""
SERVER_DEFAULTS = {"node_port": NODE_PORT, "shutdown_delay": SHUTDOWN_DELAY_S}
AGENT_DEFAULTS = {"data_dir": AGENT_DATA}
EDGE_DEFAULTS = {"data_dir": EDGE_DATA, "http_listen": "0.0.0.0"}  # noqa: S104 - an edge is for everybody
_HELP = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_HELP)
@control_plane_options
def server(**flags: Any) -> None:
    """Run a control plane without VMs and without an edge, in the foreground.

    Hosts join it: swg nodes join-token, swg nodes join. Several share one PostgreSQL database, one bus (swg bus init)
    and one master key (a KMS, or --master-keys-file). Each option can also be set in the environment
    (SHELLWEGO_NODE_PORT, ...) or in /etc/shellwego/config.toml, table [up]. SIGTERM ends it; what runs on nodes goes on.
    """
    _ended(lambda: _server(up_settings(flags, SERVER_DEFAULTS)))


def _of_a_joined_host(directory: str, data_dir: str) -> Callable[[F], F]:
    """Options of agent and edge."""

    def add(command: F) -> F:
        for option in (
            click.option("--data-dir", type=click.Path(), help=f"Where everything else is kept. [{data_dir}]"),
            click.option(
                "--dir",
                "directory",
                type=click.Path(path_type=Path),
                default=Path(directory),
                show_default=True,
                help="Where swg nodes join keeps this host's key.",
            ),
        ):
            command = option(command)
        return command

    return add


@click.command(context_settings=_HELP)
@_of_a_joined_host("/etc/shellwego/node", AGENT_DATA)
@node_options
@click.option("--http-port", type=int, help="Port where edges of the platform are reached. [80]")
@click.option("--keep-vms", is_flag=True, default=None, help="Leave VMs running when the agent ends.")
def agent(directory: Path, **flags: Any) -> None:
    """Run the VMs of this host, which joined a platform as a node, in the foreground.

    It dials the platform's servers, and goes on without them where they do not answer. SIGTERM ends it: VMs are stopped
    gracefully, or left running with --keep-vms.
    """
    _ended(lambda: _agent(directory, up_settings(flags, AGENT_DEFAULTS)))


@click.command(context_settings=_HELP)
@_of_a_joined_host("/etc/shellwego/edge", EDGE_DATA)
@click.option("--http-port", type=int, help="Port where apps are reached. [80]")
@click.option("--http-listen", metavar="ADDRESS", help="Its address. [all]")
@click.option("--keep", "keep_vms", is_flag=True, default=None, help="Leave HAProxy running; the next start adopts it.")
def edge(directory: Path, **flags: Any) -> None:
    """Take requests for apps on this host, which joined a platform as an edge, in the foreground.

    It serves on by the last routes where no server answers. SIGTERM ends it, and with --keep not HAProxy.
    """
    _ended(lambda: _edge(directory, up_settings(flags, EDGE_DEFAULTS)))


def _ended(run: Callable[[], int]) -> None:
    try:
        sys.exit(run())
    except ShellWeGoError as error:
        raise UpFailure(error) from error


def check_server(settings: UpSettings) -> None:
    """Refuse what no server can be; raises `InvalidError`."""
    if not settings.node_port:
        raise InvalidError("no-node-port", "--node-port: a server without one serves nobody", resolution="Give 7081.")


def _server(settings: UpSettings) -> int:
    from shellwego.boot import preflight  # noqa: PLC0415 - needed by a real start only

    check_server(settings)
    begin_as_root(())
    installation = preflight.open_installation(settings)
    preflight.check_reach(settings, installation)
    preflight.check_ports(settings, installation, edge=False)
    handover = read_control_plane(settings, installation)
    link = drop_root(installation, *preflight.server_listeners(settings))

    from shellwego.boot.serving import run_process  # noqa: PLC0415 - for the unprivileged child only

    return run_process("swg server", lambda: _run_server(settings, installation, handover(link)))


async def _run_server(settings: UpSettings, installation: Installation, handover: Handover) -> int:
    from shellwego.boot.controlplane import open_base, open_control_plane  # noqa: PLC0415 - see above
    from shellwego.boot.database import SERVERS  # noqa: PLC0415
    from shellwego.boot.serving import serve, stop_signal  # noqa: PLC0415
    from shellwego.drivers.engine.assembly import HostLink  # noqa: PLC0415
    from shellwego.drivers.streams.dialled import DialledStreams  # noqa: PLC0415

    stop = stop_signal()
    async with AsyncExitStack() as stack:
        link = HostLink(handover.link)
        stack.callback(link.close)
        api_socket = await link.listen(settings.api_listen, settings.api_port)
        base = await open_base(stack, settings, installation, handover, owner=SERVERS)
        links = DialledStreams()
        plane = await open_control_plane(base, link, api_socket, links, links)
        parts = {**plane.parts, "helper": link.gone()}
        ready, leave = _tell(settings, plane.servers), partial(plane.leave, settings.shutdown_delay)
        return await serve(parts, plane.servers, ready, stop, "swg server: stopping", leave=leave)


async def _tell(settings: UpSettings, servers: Sequence[Server]) -> None:
    for each in servers:
        await each.started()
    url = settings.api_url
    print(
        f"ShellWeGo's server is ready.\n"
        f"  API      {url}  (docs: {url}/docs)\n"
        f"  nodes    {settings.node_addresses[0]}  (swg nodes join-token)",
        flush=True,
    )


def _agent(directory: Path, settings: UpSettings) -> int:
    from shellwego.boot import nodedir, preflight  # noqa: PLC0415 - needed by a real start only
    from shellwego.core.joins import MemberKind  # noqa: PLC0415

    begin_as_root(preflight.NODE_PROGRAMS)
    joined = nodedir.load(directory, MemberKind.NODE)
    preflight.check_cache(settings.cache)
    preflight.check_zfs(settings.zfs)
    preflight.check_underlay(settings.underlay)
    installation = preflight.open_installation(settings)
    preflight.check_reach(settings, installation)
    link = drop_root(installation, zfs=settings.zfs, publish=preflight.publish_site(settings))

    from shellwego.boot.remote import Remote  # noqa: PLC0415 - for the unprivileged child only
    from shellwego.boot.serving import run_process  # noqa: PLC0415

    return run_process("swg agent", Remote(settings, installation, joined, link).run_agent)


def _edge(directory: Path, settings: UpSettings) -> int:
    from shellwego.boot import nodedir, preflight  # noqa: PLC0415 - needed by a real start only
    from shellwego.core.joins import MemberKind  # noqa: PLC0415

    begin_as_root(preflight.EDGE_PROGRAMS)
    joined = nodedir.load(directory, MemberKind.EDGE)
    installation = preflight.open_installation(settings)
    preflight.check_reach(settings, installation)
    listener = preflight.edge_listener(settings)
    if not preflight.edge_lives(installation.run_dir):
        preflight.check_port("--http-listen", "--http-port", listener.address, listener.port)
    link = drop_root(installation, listener)

    from shellwego.boot.remote import Remote  # noqa: PLC0415 - for the unprivileged child only
    from shellwego.boot.serving import run_process  # noqa: PLC0415

    return run_process("swg edge", Remote(settings, installation, joined, link).run_edge)
