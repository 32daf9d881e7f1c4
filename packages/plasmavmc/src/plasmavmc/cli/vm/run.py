"""`plasmavmc vm run`: a command in a new VM.

The VM is made, joined and only then started, so that nothing it writes is missed. Its exit code is ours; what fails
before it runs ends with 125, 126 or 127 (`ends`). Restarts are this process's doing: a VM is one-shot, and nobody else
would start it again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from plasmavmc.cli import values
from plasmavmc.cli.connection import connection
from plasmavmc.cli.ends import INTERRUPTED, RUN_FAILED, USAGE, Failure, run_code
from plasmavmc.cli.joining import Detached, How, Interrupted, join
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import result_options, say, show_one
from plasmavmc.cli.terminal import DEFAULT_KEYS, parse_keys, size_of_terminal
from plasmavmc.cli.views import vm_document
from plasmavmc.cli.vm.making import created
from plasmavmc.cli.vm.wish import Wish, make, wish_options
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import Scope, Vm, VmSpec

FIRST_PAUSE_S, LONGEST_PAUSE_S, GOOD_RUN_S = 0.1, 60.0, 10.0
"""Before a restart: doubled each time, and short again after a run that was so long."""


@click.command(context_settings={**HELP, "allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it runs, and print its id.")
@click.option("--rm", "remove", is_flag=True, help="Remove the VM when it has ended.")
@click.option("--restart", default="no", show_default=True, metavar="no|on-failure[:N]|always", help="While we wait.")
@click.option(
    "--detach-keys", default=DEFAULT_KEYS, show_default=True, metavar="KEYS", help="What lets go of a terminal."
)
@wish_options
@result_options
def run(output: str, **given: Any) -> None:
    """Run a command in a new VM, as `docker run` does in a container.

    Pulls IMAGE where it is missing (FILE.wasm is a module, and taken in), boots, attaches, and ends with the command's exit
    code; 125 where the VM could not be run, 126 where the command cannot be executed, 127 where there is none. Options come
    before IMAGE; what follows it are arguments of the image's Entrypoint (--entrypoint takes its place), and where it has
    none the command itself.
    """
    order = _order(given, output)
    scope = connection().scope()
    code = with_engine(lambda engine: _run(engine, order, scope, output), running=True)
    raise click.exceptions.Exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What `run` was given."""

    wish: Wish
    detach: bool
    remove: bool
    restart: values.Restart
    how: How


def _order(given: dict[str, Any], output: str) -> _Order:
    """Refuse what contradicts itself."""
    wish = Wish(given)
    wish.check()
    restart, detach, remove = values.restart(given["restart"]), given["detach"], given["remove"]
    if output == "json" and not detach:
        raise Failure("-o json tells of a VM that runs detached: give -d, too", code=USAGE)
    if detach and remove:
        raise Failure("--rm does not go with -d: nobody waits for the end of it", code=USAGE)
    if restart != values.NO_RESTART:
        for option, there in (("-d", detach), ("--rm", remove), ("-i", given["interactive"])):
            if there:
                raise Failure(
                    f"--restart {given['restart']} does not go with {option}: it is this process that would start it anew",
                    code=USAGE,
                )
    if given["interactive"] and given["tty"] and not detach and not sys.stdin.isatty():
        raise Failure(
            "-t: stdin is no terminal", code=RUN_FAILED, resolution="Leave -t out: -i alone passes a pipe on."
        )
    how = How(stdin=given["interactive"] and not detach, terminal=given["tty"], keys=parse_keys(given["detach_keys"]))
    return _Order(wish=wish, detach=detach, remove=remove, restart=restart, how=how)


async def _run(engine: EngineClient, order: _Order, scope: Scope | None, output: str) -> int:
    spec = await make(engine, order.wish, scope, attached=not order.detach, quiet=output != "table")
    if order.detach:
        return await _detached(engine, spec, order, output)
    starts, pause = 0, FIRST_PAUSE_S
    while True:
        began = time.monotonic()
        vm, code = await _attached(engine, spec, order)
        if code is None or order.how.passed or not order.restart.again(code, starts):
            return code or 0
        pause = FIRST_PAUSE_S if time.monotonic() - began > GOOD_RUN_S else min(2 * pause, LONGEST_PAUSE_S)
        starts += 1
        say(f"plasmavmc: it ended with {code}; restart {starts} in {pause:.1f} s")
        await asyncio.sleep(pause)
        await engine.vms.delete(vm.spec.id)
        spec = replace(spec, id=vm.spec.id, name=vm.spec.name)


async def _detached(engine: EngineClient, spec: VmSpec, order: _Order, output: str) -> int:
    """Start it, and wait until it runs or cannot."""
    vm = await created(engine, spec, start=True)
    try:
        vm = await until_runs(engine, vm)
    except BaseException:
        await _finished(engine, vm, remove=order.remove)
        raise
    show_one("name" if output == "table" else output, vm_document(vm), {}, name=vm.spec.id)
    return 0


async def until_runs(engine: EngineClient, vm: Vm) -> Vm:
    """The VM as soon as its workload was started.

    Raises:
        Failure: it was not, and why.
    """
    from contextlib import aclosing  # noqa: PLC0415

    from plasmavmc.states import ENDED, VmState  # noqa: PLC0415

    async with aclosing(engine.vms.watch()) as events:
        async for event in events:
            if event.deleted_vm_id == vm.spec.id:
                break
            if event.vm is None or event.vm.spec.id != vm.spec.id:
                continue
            status = event.vm.status
            ran = status.state is not VmState.FAILED and status.exit_code is not None
            if status.state is VmState.RUNNING or ran:
                return await engine.vms.get(vm.spec.id)
            if status.state in ENDED:
                raise Failure(status.reason or "it ended before it ran", code=run_code(status.reason_code))
    raise Failure(f"VM {vm.spec.id} was removed before it ran", code=RUN_FAILED)


async def _attached(engine: EngineClient, spec: VmSpec, order: _Order) -> tuple[Vm, int | None]:
    """One life of it, joined; None for the exit code where it was let go of and runs on."""
    vm = await created(engine, spec)
    letting_go = False
    try:
        session = await engine.vms.attach(vm.spec.id, size_of_terminal() if order.how.terminal else None)
        try:
            await engine.vms.start(vm.spec.id)
            return vm, await join(session, order.how)
        finally:
            await session.aclose()
    except Detached:
        letting_go = True
        say(f"\r\nplasmavmc: {vm.spec.id} runs on; plasmavmc vm attach {vm.spec.id}\r")
        return vm, None
    except Interrupted:
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        if not letting_go:
            await _finished(engine, vm, remove=order.remove)


async def _finished(engine: EngineClient, vm: Vm, *, remove: bool) -> None:
    """Whatever happened here, no VM runs on that nobody knows of; with `remove` nothing of it is left."""
    from plasmavmc.errors import PlasmaError  # noqa: PLC0415

    async def finish() -> None:
        with suppress(PlasmaError):
            if remove:
                await engine.vms.delete(vm.spec.id)
            else:
                await engine.vms.stop(vm.spec.id, 0)

    await asyncio.shield(asyncio.ensure_future(finish()))
