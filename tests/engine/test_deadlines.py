"""Deadlines in tasks that were cancelled and now undo what they did: who does not answer is not waited for, and is ended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from plasmavmc.deadlines import within
from plasmavmc.errors import PlasmaError
from plasmavmc.guest import channel as guest_channel
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.host.run import feeding
from plasmavmc.hypervisor.memory import Faults, MemoryBackend
from plasmavmc.hypervisor.qemu import vm as qemu_vm
from plasmavmc.hypervisor.qemu.qmp import qmp_session
from plasmavmc.hypervisor.qemu.sockets import VmSockets
from plasmavmc.hypervisor.qemu.vm import QemuVm
from plasmavmc.types import VmHandle
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, eventually, reaches, running
from tests.engine.test_hypervisor_process import ReapingHost, watch

FOR_EVER_S = 3600.0


async def cleared_up(clear: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
    """A task that was cancelled, and then did this."""
    begun = asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.sleep(FOR_EVER_S)
        finally:
            await clear()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=10.0)
    return task


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A monitor that takes connections and never says anything."""
    path = VmSockets(tmp_path).qmp
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


async def test_a_deadline_tells_that_it_is_over_in_a_task_that_was_cancelled() -> None:
    told: list[bool] = []

    async def clear() -> None:
        try:
            async with within(0.01) as deadline:
                await asyncio.sleep(FOR_EVER_S)
        except TimeoutError:
            told.append(deadline.expired())

    task = await cleared_up(clear)
    assert told == [True]
    assert task.cancelled()


async def test_who_is_cancelled_within_a_deadline_is_cancelled() -> None:
    async def work() -> None:
        async with within(FOR_EVER_S):
            await asyncio.sleep(FOR_EVER_S)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_cancellation_at_the_very_moment_of_the_deadline_is_not_lost() -> None:
    async def work() -> None:
        async with within(None) as deadline:
            deadline.reschedule(0.0)
            try:
                await asyncio.sleep(FOR_EVER_S)
            finally:
                own = asyncio.current_task()
                assert own is not None
                own.cancel()

    task = asyncio.create_task(work())
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_qemu_that_does_not_answer_is_killed_by_a_boot_that_is_undone(
    silent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_vm, "QUIT_DEADLINE_S", 0.05)
    process = watch(ReapingHost(), "import time; time.sleep(3600)")
    task = await cleared_up(QemuVm("vm_one", process, VmSockets(silent.parent)).end)
    assert task.done()
    assert await process.ended(10.0)


@pytest.mark.parametrize("waking", [False, True])
async def test_a_stop_during_a_boot_or_wake_ends_a_vmm_whose_monitor_is_silent(
    tmp_path: Path, silent: Path, monkeypatch: pytest.MonkeyPatch, waking: bool
) -> None:
    rig = EngineRig(tmp_path / "engine")
    end = MemoryBackend.stop_vm

    async def asked_first(self: MemoryBackend, handle: VmHandle) -> None:
        with suppress(PlasmaError):
            async with qmp_session(silent, 0.02):
                pass
        await end(self, handle)

    async def for_ever(*_anything: object) -> None:
        await asyncio.sleep(FOR_EVER_S)

    monkeypatch.setattr(MemoryBackend, "stop_vm", asked_first)
    if waking:
        manager = await running(rig)
        await manager.suspend("vm_one")
        monkeypatch.setattr(MemoryBackend, "load_state", for_ever)
        begun = asyncio.create_task(manager.resume("vm_one"))
    else:
        rig.vmms.faults = Faults(hang=True)
        manager = rig.manager()
        begun = asyncio.create_task(asyncio.sleep(0))
        manager.create(rig.spec("one", "serve"))
        manager.start("vm_one")
    await reaches(manager, "vm_one", S.RESUMING if waking else S.STARTING)
    await eventually(rig.vmms.living)
    async with asyncio.timeout(5.0):
        ended = await manager.stop("vm_one", 1)
    await asyncio.wait({begun})
    if not begun.cancelled():
        begun.exception()
    assert ended.status.state is S.STOPPED
    assert not rig.vmms.living()


async def test_a_channel_is_let_go_of_by_a_boot_that_is_undone_though_the_guest_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_channel, "_CLOSE_S", 0.02)
    path = tmp_path / "guest"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        reader, writer = await asyncio.open_unix_connection(str(path))
        channel = SocketGuestChannel(reader, writer)
        writer.write(bytes(8 << 20))  # more than any socket holds
        task = await cleared_up(channel.aclose)
        assert task.done()
        await eventually(lambda: writer.transport.get_write_buffer_size() == 0)


async def test_a_program_that_does_not_end_is_told_so_where_it_is_run_to_undo_something() -> None:
    told: list[str] = []

    async def clear() -> None:
        try:
            async with feeding(["sleep", str(FOR_EVER_S)], timeout_s=0.05) as child:
                await child.finish()
        except PlasmaError as error:
            told.append(error.code)

    await cleared_up(clear)
    assert told == ["program-timeout"]
