"""`plasmavmc vm ls|inspect|logs`."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from plasmavmc.cli import values
from plasmavmc.cli.connection import connection
from plasmavmc.cli.find import find
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import cell, result_options, show, show_one
from plasmavmc.cli.views import vm_document, vm_pairs, vm_row
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import LogLine, Vm

_AGO = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.command(context_settings=dict(HELP))
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-l", "--label", "label", multiple=True, metavar="NAME=VALUE", help="Only those with this label.")
@result_options
def ls(output: str, *, everything: bool, label: tuple[str, ...]) -> None:
    """List VMs."""
    scope, chosen_labels = connection().scope(), values.labels(label)

    async def work(engine: EngineClient) -> list[Vm]:
        from plasmavmc.rpc.api import VmFilter  # noqa: PLC0415
        from plasmavmc.states import ENDED  # noqa: PLC0415

        chosen = VmFilter(labels=chosen_labels, scope=scope)
        found = [vm async for vm in engine.vms.list_vms(chosen)]
        return [vm for vm in found if everything or vm.status.state not in ENDED]

    vms = with_engine(work)
    show(output, [vm_document(vm) for vm in vms], [vm_row(vm) for vm in vms], name="id", empty="no VMs run")


@click.command(context_settings=dict(HELP))
@click.argument("vms", nargs=-1, required=True, metavar="VM...")
@result_options
def inspect(output: str, vms: tuple[str, ...]) -> None:
    """Show VMs in full, with what they use and the last lines of those that have ended."""
    scope = connection().scope()

    async def work(engine: EngineClient) -> list[Vm]:
        return [await engine.vms.get((await find(engine, word, scope)).spec.id) for word in vms]

    found = with_engine(work)
    if output == "json":
        click.echo(json.dumps([vm_document(vm) for vm in found], indent=2, ensure_ascii=False))
        return
    for number, vm in enumerate(found):
        if number and output == "table":
            click.echo()
        show_one(output, None, vm_pairs(vm), name=vm.spec.id)
        if output == "table" and vm.status.log_tail:
            click.echo("last lines:\n" + "\n".join(f"  | {cell(line)}" for line in vm.status.log_tail[-20:]))


@click.command(context_settings=dict(HELP))
@click.argument("vm_word", metavar="VM")
@click.option("-f", "--follow", is_flag=True, help="Go on until the VM ends.")
@click.option(
    "-n", "--tail", type=click.IntRange(0, 100_000), default=1000, show_default=True, help="Lines of the past."
)
@click.option("--since", metavar="TIME", default="", help="Not older than 10m, 2h, or 2026-01-31T12:00:00Z.")
@click.option("-t", "--timestamps", is_flag=True, help="Tell when each line was written.")
@result_options
def logs(output: str, vm_word: str, *, follow: bool, tail: int, since: str, timestamps: bool) -> None:
    """Show what a VM wrote, also after its end (for a day). What went to stderr goes to stderr."""
    scope, moment = connection().scope(), _moment(since)

    async def work(engine: EngineClient) -> None:
        vm = await find(engine, vm_word, scope)
        async for line in engine.vms.logs(vm.spec.id, follow=follow, tail=tail, since=moment):
            if output == "json":
                click.echo(json.dumps({"time": line.time, "stream": line.stream.value, "text": line.text}))
            else:
                _print(line, timestamps=timestamps)

    with_engine(work)


def _print(line: LogLine, *, timestamps: bool) -> None:
    from plasmavmc.types import LogStream  # noqa: PLC0415

    when = f"{datetime.fromtimestamp(line.time, UTC).isoformat(timespec='milliseconds')} " if timestamps else ""
    whose = "plasmavmc: " if line.stream is LogStream.SYSTEM else ""
    click.echo(f"{when}{whose}{line.text}", err=line.stream is not LogStream.STDOUT)


def _moment(text: str) -> float:
    """A time, or how long ago."""
    if not text:
        return 0.0
    match = _AGO.fullmatch(text)
    if match is not None:
        return time.time() - int(match[1]) * _SECONDS[match[2]]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise values.refused("--since", text, "write 10m, 2h, or 2026-01-31T12:00:00Z") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
