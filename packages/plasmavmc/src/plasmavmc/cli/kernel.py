"""`plasmavmc kernel`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.options import cache_option
from plasmavmc.cli.output import result_options, say, show_one
from plasmavmc.cli.working import run_work

if TYPE_CHECKING:
    from plasmavmc.guest.kernel import Kernel
    from plasmavmc.guest.ownkernel.build import Stage

_WORDS = {
    "download": "fetching its source",
    "unpack": "unpacking its source",
    "configure": "configuring",
    "compile": "compiling",
    "install": "putting it into the cache",
}
_NEXT_START = "VMs have it from the next start of a server on."


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
@click.option("--jobs", type=click.IntRange(1, 1024), help="Compilers at once.  [default: one for each core]")
@cache_option
@result_options
def build(output: str, cache: Path, jobs: int | None) -> None:
    """Build a kernel that boots faster, from the distribution's source, and use it before the distribution's own.

    It has the same security fixes and mitigations, and no drivers but those of a microVM. Build it again when the
    distribution has published fixes: `plasmavmc doctor` tells when.
    """
    from plasmavmc.guest.ownkernel.build import SCRATCH_BYTES, OwnKernels, default_jobs  # noqa: PLC0415

    progress = _Progress(quiet=output != "table")
    progress.say(f"takes minutes to an hour, and {SCRATCH_BYTES >> 30} GiB in {cache} while it goes on")
    built, new = run_work(OwnKernels(cache).build(jobs or default_jobs(), progress.update))
    progress.clear()
    if output == "table":
        click.echo(f"kernel {built.release}: {f'built in {built.directory}. {_NEXT_START}' if new else 'up to date'}")
        return
    document = {"release": built.release, "directory": str(built.directory), "sha256": built.sha256, "built": new}
    show_one(output, document, document, name=built.release)


@kernel.command(context_settings=dict(HELP))
@click.argument("which", type=click.Choice(["own", "distribution"]))
@cache_option
@result_options
def use(output: str, cache: Path, which: str) -> None:
    """Choose the kernel that VMs start with: the newest that was built here, or the distribution's.

    VMs that run or are suspended keep theirs.
    """
    from plasmavmc.guest.ownkernel.build import OwnKernels  # noqa: PLC0415

    kernels = OwnKernels(cache)
    used: Kernel = run_work(kernels.use_own() if which == "own" else kernels.use_distribution())
    if output == "table":
        click.echo(f"kernel {used.release}: in use. {_NEXT_START}")
        return
    document = {"release": used.release, "directory": str(used.directory)}
    show_one(output, document, document, name=used.release)


class _Progress:
    """The stages of a build, on stderr: a line each, and on a terminal how far the long one is. Silent with `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._stage = ""

    def say(self, words: str) -> None:
        if not self._quiet:
            say(f"kernel: {words}")

    def update(self, stage: Stage, steps: int) -> None:
        if stage != self._stage:
            self.clear()
            self._stage = stage
            self.say(_WORDS[stage])
        elif self._live:
            click.echo(f"\r\033[K  {steps} steps", err=True, nl=False)

    def clear(self) -> None:
        """Take away the line that shows how far it is."""
        if self._live:
            click.echo("\r\033[K", err=True, nl=False)
