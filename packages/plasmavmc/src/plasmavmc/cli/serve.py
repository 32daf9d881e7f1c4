"""`plasmavmc serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from plasmavmc.cli.ends import failure_of
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.options import cache_option
from plasmavmc.cli.values import Size


@click.command(context_settings=dict(HELP))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept. [/var/lib/plasmavmc]")
@click.option("--socket", type=click.Path(path_type=Path), help="Root's socket. [/run/plasmavmc/plasmavmc.sock]")
@click.option("--listen", metavar="HOST:PORT", help="Serve TCP too, with mutual TLS. [nothing]")
@click.option("--tls-cert", "certificate", type=click.Path(path_type=Path), help="The server's certificate (PEM).")
@click.option("--tls-key", "key", type=click.Path(path_type=Path), help="Its private key (PEM).")
@click.option("--tls-client-ca", "client_authority", type=click.Path(path_type=Path), help="Whose clients may connect.")
@click.option("--policy", type=click.Path(path_type=Path), help="Who may do what (TOML). [root, by its socket]")
@click.option(
    "--registry-allow",
    "registries_allow",
    multiple=True,
    metavar="HOST[:PORT]",
    help="A registry on a private or loopback address that may be used. Repeatable.",
)
@click.option("--zfs", metavar="DATASET", help="Keep volumes below this ZFS dataset. [in the data directory]")
@click.option("--keep-vms", is_flag=True, help="Leave VMs running when the server ends.")
@click.option(
    "--preboot",
    type=click.IntRange(0, 64),
    metavar="N",
    help="Boot up to N guests ahead, one for each shape of VM, and begin new VMs as copies of them. [0]",
)
@click.option("--image-budget", type=Size(), metavar="SIZE", help="Remove the longest unused images beyond it. [never]")
@cache_option
def serve(**given: Any) -> None:
    """Serve this host's microVMs over gRPC (plasmavmc.v1), in the foreground. Needs root; all but a helper drops it.

    SIGTERM ends it: VMs are stopped gracefully, or left running with --keep-vms. SIGHUP reads the policy again.
    """
    from plasmavmc.errors import PlasmaError  # noqa: PLC0415
    from plasmavmc.server.settings import ServeSettings  # noqa: PLC0415
    from plasmavmc.server.start import serve as start  # noqa: PLC0415

    try:
        sys.exit(start(ServeSettings(**{name: value for name, value in given.items() if value is not None})))
    except PlasmaError as error:
        raise failure_of(error) from error
