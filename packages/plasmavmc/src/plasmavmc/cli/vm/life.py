"""`plasmavmc vm start|stop|suspend|resume|fork|rm`: VMs that are there already. Of several, each is tried."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from plasmavmc.cli import values
from plasmavmc.cli.connection import connection
from plasmavmc.cli.ends import CONFLICT, USAGE, Failure, failure_of
from plasmavmc.cli.find import find
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import result_options, show, show_ends
from plasmavmc.cli.views import vm_document, vm_row
from plasmavmc.cli.vm.run import until_runs
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import Vm

Work = Callable[["EngineClient", "Vm"], Awaitable[object]]

_some_vms = click.argument("vms", nargs=-1, required=True, metavar="VM...")


def _each(vms: tuple[str, ...], work: Work, output: str) -> None:
    """Do it to each, print those it was done to, and end as the first that failed does."""
    scope = connection().scope()

    async def all_of_them(engine: EngineClient) -> tuple[list[str], list[Failure]]:
        from plasmavmc.errors import PlasmaError  # noqa: PLC0415

        async def one(word: str) -> str | Failure:
            try:
                vm = await find(engine, word, scope)
                await work(engine, vm)
            except PlasmaError as error:
                return failure_of(error)
            except Failure as failure:
                return failure
            return vm.spec.id

        ends = await asyncio.gather(*(one(word) for word in vms))
        return [end for end in ends if isinstance(end, str)], [end for end in ends if isinstance(end, Failure)]

    show_ends(output, *with_engine(all_of_them))


@click.command(context_settings=dict(HELP))
@_some_vms
@result_options
def start(output: str, vms: tuple[str, ...]) -> None:
    """Start VMs. One that has ended begins anew, with a fresh writable layer. Returns when they run."""

    async def work(engine: EngineClient, vm: Vm) -> None:
        from plasmavmc.states import ENDED  # noqa: PLC0415

        again = vm.status.state in ENDED
        started = await (engine.vms.restart(vm.spec.id) if again else engine.vms.start(vm.spec.id))
        await until_runs(engine, started)

    _each(vms, work, output)


@click.command(context_settings=dict(HELP))
@click.option(
    "-t", "--time", "grace", type=click.FloatRange(0, 86_400), help="Seconds until they are killed. [as made]"
)
@_some_vms
@result_options
def stop(output: str, vms: tuple[str, ...], grace: float | None) -> None:
    """Stop VMs gracefully; returns when they have ended."""
    _each(vms, lambda engine, vm: engine.vms.stop(vm.spec.id, grace), output)


@click.command(context_settings=dict(HELP))
@_some_vms
@result_options
def suspend(output: str, vms: tuple[str, ...]) -> None:
    """Put running VMs on disk, memory and all. Refused where the backend has not that ability."""
    _each(vms, lambda engine, vm: engine.vms.suspend(vm.spec.id), output)


@click.command(context_settings=dict(HELP))
@_some_vms
@result_options
def resume(output: str, vms: tuple[str, ...]) -> None:
    """Wake suspended VMs."""
    _each(vms, lambda engine, vm: engine.vms.resume(vm.spec.id), output)


@click.command(context_settings=dict(HELP))
@click.option(
    "--egress",
    multiple=True,
    metavar="DESTINATION",
    help="Open connections there only, such as 203.0.113.0/24:443/tcp; repeatable; none: nowhere.",
)
@click.option("--open", "opened", is_flag=True, help="To whatever is not closed to every VM.")
@_some_vms
@result_options
def restrict(output: str, vms: tuple[str, ...], egress: tuple[str, ...], *, opened: bool) -> None:
    """Change what VMs may open connections to; what is open is held to it as well."""
    if bool(egress) is opened:
        raise Failure("give --egress, or --open", code=USAGE)
    destinations = values.egress(egress)
    _each(vms, lambda engine, vm: engine.vms.restrict(vm.spec.id, destinations), output)


@click.command(context_settings=dict(HELP))
@click.option("--identity", metavar="NAME", help="What ingress knows it by; empty: none does. [as it is]")
@click.option(
    "--ingress",
    multiple=True,
    metavar="OPENING",
    help="VMs of its network open only this to it, such as web:5432/tcp, or *:80 for all; repeatable; none: nothing.",
)
@click.option("--open", "opened", is_flag=True, help="VMs of its network open anything to it.")
@_some_vms
@result_options
def screen(output: str, vms: tuple[str, ...], identity: str | None, ingress: tuple[str, ...], *, opened: bool) -> None:
    """Change what VMs of their network may open to VMs; what is open is held to it as well."""
    if bool(ingress) is opened:
        raise Failure("give --ingress, or --open", code=USAGE)
    openings = values.ingress(ingress)

    async def work(engine: EngineClient, vm: Vm) -> None:
        known = vm.spec.networks[0].identity if vm.spec.networks else ""
        await engine.vms.screen(vm.spec.id, known if identity is None else identity, openings)

    _each(vms, work, output)


@click.command(context_settings=dict(HELP))
@click.option("-f", "--force", is_flag=True, help="Also those that run: they are killed.")
@_some_vms
@result_options
def rm(output: str, vms: tuple[str, ...], *, force: bool) -> None:
    """Remove VMs with their disks."""

    async def work(engine: EngineClient, vm: Vm) -> None:
        from plasmavmc.states import ENDED, VmState  # noqa: PLC0415

        if not force and vm.status.state not in ENDED | {VmState.PENDING}:
            raise Failure(
                f"VM {vm.spec.id} is {vm.status.state.value}",
                code=CONFLICT,
                resolution=f"Stop it first, or: plasmavmc vm rm -f {vm.spec.id}",
            )
        await engine.vms.delete(vm.spec.id)

    _each(vms, work, output)


@click.command(context_settings=dict(HELP))
@click.argument("vm_word", metavar="VM")
@click.option("-n", "--count", type=click.IntRange(1, 64), default=1, show_default=True, help="How many copies.")
@click.option("--name", default="", help="Of the copy; of several, NAME-1, NAME-2 …. [made up]")
@result_options
def fork(output: str, vm_word: str, count: int, name: str) -> None:
    """Copy a running VM: the copies go on from where it is. Refused where the backend has not that ability."""
    scope = connection().scope()

    async def work(engine: EngineClient) -> tuple[Vm, ...]:
        from plasmavmc.types import ForkIdentity  # noqa: PLC0415

        origin = await find(engine, vm_word, scope)
        names = [name] if count == 1 else [f"{name}-{number}" if name else "" for number in range(1, count + 1)]
        return await engine.vms.fork(origin.spec.id, [ForkIdentity("", each) for each in names])

    copies = with_engine(work)
    show(output, [vm_document(vm) for vm in copies], [vm_row(vm) for vm in copies], name="id")
