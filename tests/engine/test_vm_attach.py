"""Who is attached to a workload: what is heard, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, GuestError
from plasmavmc.guest.api import ExecExit, ExecOutput, ExecSession
from plasmavmc.guest.attachment import MAX_QUEUED
from plasmavmc.guest.memory import MemoryGuest
from plasmavmc.hypervisor.memory import PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import Stdio, TerminalSize, VmSpec
from tests.engine.engine_rig import EngineRig, script


class World:
    """An engine with one VM, and its guest."""

    def __init__(self, directory: Path) -> None:
        self.guests: list[MemoryGuest] = []
        self.rig = EngineRig(directory, vmms=PretendedVmms(self._new_guest))
        self.manager: VmManager = self.rig.manager()

    def _new_guest(self, _spec: object) -> MemoryGuest:
        self.guests.append(MemoryGuest(script))
        return self.guests[-1]

    def create(self, *command: str, stdio: Stdio = Stdio.ATTACHED) -> VmSpec:
        spec = replace(self.rig.spec("a", *command), stdio=stdio)
        self.manager.create(spec)
        return spec

    async def until(self, look: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not look():  # noqa: ASYNC110 - nothing tells of what is looked for
                await asyncio.sleep(0.005)

    async def runs(self) -> MemoryGuest:
        self.manager.start("vm_a")
        await self.until(lambda: self.manager.get("vm_a").status.state is VmState.RUNNING)
        return self.guests[-1]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    await made.manager.recover()
    return made


async def all_of(session: ExecSession) -> list[ExecOutput | ExecExit]:
    async with asyncio.timeout(10):
        return [item async for item in session.output()]


async def test_who_joins_before_the_start_hears_everything(world: World) -> None:
    world.create("exit", "3")
    session = world.manager.attach("vm_a")
    world.manager.start("vm_a")
    *outputs, end = await all_of(session)
    assert b"".join(each.data for each in outputs if isinstance(each, ExecOutput)) == b"hello\n"
    assert end == ExecExit(3)


async def test_why_it_never_ran_is_told(world: World) -> None:
    world.create("missing")
    session = world.manager.attach("vm_a")
    world.manager.start("vm_a")
    with pytest.raises(GuestError, match="no /missing") as failed:
        await all_of(session)
    assert failed.value.code == "no-such-command"


async def test_one_that_has_ended_is_joined_by_nobody(world: World) -> None:
    world.create()
    await world.manager.stop("vm_a")
    with pytest.raises(ConflictError, match="ended"):
        world.manager.attach("vm_a")


async def test_output_that_a_reader_has_not_taken_is_not_acknowledged(world: World) -> None:
    world.create()
    session = world.manager.attach("vm_a")
    guest = await world.runs()
    guest.write(b"line\n")
    await world.until(lambda: "line" in str(world.rig.parts.logs.open(world.manager._machines.get("vm_a").key).tail(9)))
    assert guest.unacknowledged > 0
    await anext(session.output())
    await session.aclose()
    await world.until(lambda: guest.unacknowledged == 0)


async def test_one_that_waits_for_nobody_is_not_held_by_a_reader(world: World) -> None:
    world.create(stdio=Stdio.LOGGED)
    session = world.manager.attach("vm_a")
    guest = await world.runs()
    guest.write(b"line\n")
    await world.until(lambda: guest.unacknowledged == 0)
    for _ in range(3 * MAX_QUEUED // 65536):
        guest.write(b"x" * 65535 + b"\n")
    guest.exit(0)
    await world.until(lambda: world.manager.get("vm_a").status.state is VmState.STOPPED)
    items = await all_of(session)
    assert isinstance(items[-1], ExecExit)
    assert sum(len(item.data) for item in items if isinstance(item, ExecOutput)) <= MAX_QUEUED


async def test_the_size_of_who_is_attached_is_the_terminals_from_its_start(world: World) -> None:
    world.create(stdio=Stdio.TERMINAL)
    session = world.manager.attach("vm_a", TerminalSize(33, 44))
    guest = await world.runs()
    assert guest.config is not None
    assert guest.config.terminal_size == TerminalSize(33, 44)
    await session.resize(TerminalSize(50, 60))
    assert guest.workload.sizes == [TerminalSize(50, 60)]
