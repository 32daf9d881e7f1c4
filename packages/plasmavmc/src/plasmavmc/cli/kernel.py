"""`plasmavmc kernel`."""

from __future__ import annotations

from pathlib import Path

import click

from plasmavmc.cli.ends import FAILED, Failure
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.options import cache_option
from plasmavmc.cli.output import result_options, show_one
from plasmavmc.cli.working import run_work


@click.group(context_settings=dict(HELP))
def kernel() -> None:
    """The guests' kernel."""


@kernel.command(context_settings=dict(HELP))
@click.option("--update", is_flag=True, help="Fetch the archive's newest, where it is another.")
@cache_option
@result_options
def fetch(output: str, cache: Path, *, update: bool) -> None:
    """Put the distribution's kernel for virtual machines into the cache. Nothing is installed on the host."""
    from plasmavmc.guest.kernel import fetch_kernel  # noqa: PLC0415

    fetched, new = run_work(fetch_kernel(cache, update=update))
    if output == "table":
        click.echo(f"kernel {fetched.release}: {f'fetched to {fetched.directory}' if new else 'up to date'}")
        return
    document = {"release": fetched.release, "directory": str(fetched.directory), "fetched": new}
    show_one(output, document, document, name=fetched.release)


@kernel.command(context_settings=dict(HELP))
def build() -> None:
    """Not offered: guests run the distribution's own kernel."""
    raise Failure(
        "kernel build is not offered: guests run the distribution's kernel, with its security updates",
        code=FAILED,
        resolution="Run: plasmavmc kernel fetch",
    )
