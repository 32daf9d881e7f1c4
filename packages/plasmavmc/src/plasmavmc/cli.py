"""The command `plasmavmc`. What a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from plasmavmc.errors import PlasmaError
from plasmavmc.guest.cache import CACHE_VARIABLE, DEFAULT_CACHE

Result = TypeVar("Result")

CACHE_OPTION = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=CACHE_VARIABLE,
    default=DEFAULT_CACHE,
    show_default=True,
    help="The host's cache.",
)


def run_command(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to its end; an error of the engine becomes its words on stderr and exit code 1."""
    try:
        return asyncio.run(work)
    except PlasmaError as error:
        click.echo(f"plasmavmc: {error}", err=True)
        sys.exit(1)


@click.group()
@click.version_option(package_name="plasmavmc")
def main() -> None:
    """PlasmaVMC: microVMs on one host."""


@main.command()
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
@click.option("--keep-vms", is_flag=True, help="Leave VMs running when the server ends.")
@CACHE_OPTION
def serve(**given: Any) -> None:
    """Serve this host's microVMs over gRPC (plasmavmc.v1), in the foreground. Needs root; all but a helper drops it.

    SIGTERM ends it: VMs are stopped gracefully, or left running with --keep-vms. SIGHUP reads the policy again.
    """
    from plasmavmc.server.settings import ServeSettings  # noqa: PLC0415
    from plasmavmc.server.start import serve as start  # noqa: PLC0415

    try:
        sys.exit(start(ServeSettings(**{name: value for name, value in given.items() if value is not None})))
    except PlasmaError as error:
        click.echo(f"plasmavmc serve: {error}", err=True)
        sys.exit(1)


@main.group()
def kernel() -> None:
    """The guests' kernel."""


@kernel.command("fetch")
@click.option("--update", is_flag=True, help="Fetch the archive's newest, where it is another.")
@CACHE_OPTION
def kernel_fetch(cache: Path, *, update: bool) -> None:
    """Put the distribution's kernel for virtual machines into the cache. Nothing is installed on the host."""
    from plasmavmc.guest.kernel import fetch_kernel  # noqa: PLC0415

    fetched, new = run_command(fetch_kernel(cache, update=update))
    click.echo(f"kernel {fetched.release}: {f'fetched to {fetched.directory}' if new else 'up to date'}")


@main.group()
def guest() -> None:
    """What runs in a microVM beside the workload."""


@guest.command("build")
@CACHE_OPTION
def guest_build(cache: Path) -> None:
    """Compile the guest's init, and make initramfs and disk template, where the cache lacks them."""
    from plasmavmc.guest.boot import DEFAULT_DISK_BYTES, build_guest, disk_template  # noqa: PLC0415

    async def build() -> None:
        assets, new = await build_guest(cache)
        click.echo(f"guest {assets.initrd_hash}: {f'built in {assets.initrd.parent}' if new else 'up to date'}")
        template = await disk_template(cache, DEFAULT_DISK_BYTES)
        click.echo(f"disk template: {template}")

    run_command(build())
