"""`plasmavmc guest`."""

from __future__ import annotations

from pathlib import Path

import click

from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.options import cache_option
from plasmavmc.cli.output import result_options, show_one
from plasmavmc.cli.working import run_work


@click.group(context_settings=dict(HELP))
def guest() -> None:
    """What runs in a microVM beside the workload."""


@guest.command(context_settings=dict(HELP))
@cache_option
@result_options
def build(output: str, cache: Path) -> None:
    """Compile the guest's init, and make initramfs and disk template, where the cache lacks them."""
    from plasmavmc.guest.boot import DEFAULT_DISK_BYTES, build_guest, disk_template  # noqa: PLC0415

    async def work() -> None:
        assets, new = await build_guest(cache)
        if output == "table":
            click.echo(f"guest {assets.initrd_hash}: {f'built in {assets.initrd.parent}' if new else 'up to date'}")
        template = await disk_template(cache, DEFAULT_DISK_BYTES)
        if output == "table":
            click.echo(f"disk template: {template}")
            return
        document = {"guest": assets.initrd_hash, "initrd": str(assets.initrd), "built": new, "template": str(template)}
        show_one(output, document, document, name=assets.initrd_hash)

    run_work(work())
