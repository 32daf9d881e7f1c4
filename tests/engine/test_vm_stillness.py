"""A VM stands still for one at a time: copies of its volumes, its suspend, its copy and its stop do not tear each other."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, PlasmaError, UnavailableError
from plasmavmc.guest.api import GuestConfig
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.host.threads import in_thread
from plasmavmc.hypervisor.memory import MemoryBackend, PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.types import ForkIdentity, VmHandle
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, eventually, guest, reaches, started
from tests.engine.volume_parts import SIZE, mount, running, spec, view

DEADLINE_S = 5.0
HOUR = 3600.0
TWO = (mount("vol_1", "/one"), mount("vol_2", "/two"))


class Copies:
    """Copies of volumes, each of which takes until it is let go, and whether the VM stood still to its end."""

    def __init__(self, rig: EngineRig) -> None:
        self._rig = rig
        self._take = rig.volumes.snapshot
        self._gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.begun: list[str] = []
        self.stood: dict[str, bool] = {}
        rig.volumes.snapshot = self._slow  # type: ignore[method-assign]

    async def _slow(self, volume_id: str, snapshot_id: str) -> None:
        self.begun.append(volume_id)
        await self._gates[volume_id].wait()
        self.stood[volume_id] = "vm_one" in self._rig.vmms.standing_still()
        await self._take(volume_id, snapshot_id)

    def let_go(self, *volume_ids: str) -> None:
        for volume_id in volume_ids:
            self._gates[volume_id].set()


@pytest.fixture
def copies(rig: EngineRig) -> Copies:
    return Copies(rig)


async def turns() -> None:
    """Whatever can go on has gone on by now, also what goes by threads."""
    for _ in range(100):
        await in_thread(_nothing)


def _nothing() -> None:
    return


def taking(manager: VmManager, volume_id: str = "vol_1") -> asyncio.Task[None]:
    return asyncio.create_task(manager.volumes.snapshot(volume_id, f"snap_{volume_id}"))


async def snapshots(manager: VmManager, volume_id: str = "vol_1") -> int:
    return len((await view(manager, volume_id)).snapshots)


async def refused(order: Awaitable[object]) -> str:
    with pytest.raises(PlasmaError) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await order
    return caught.value.code


async def test_a_vm_stands_still_to_the_end_of_each_of_two_copies_that_are_due_at_once(
    rig: EngineRig, copies: Copies
) -> None:
    manager = await running(rig, TWO)
    both = [taking(manager, "vol_1"), taking(manager, "vol_2")]
    await eventually(lambda: copies.begun)
    await turns()
    copies.let_go("vol_1")
    await both[0]
    await turns()
    copies.let_go("vol_2")
    await both[1]
    assert copies.stood == {"vol_1": True, "vol_2": True}
    assert not rig.vmms.standing_still()
    assert [await snapshots(manager, each) for each in ("vol_1", "vol_2")] == [1, 1]


async def test_a_volume_grows_when_the_vm_runs_on_and_can_answer(rig: EngineRig, copies: Copies) -> None:
    manager = await running(rig, TWO)
    copy = taking(manager, "vol_1")
    await eventually(lambda: copies.begun)
    growing = asyncio.create_task(manager.volumes.resize("vol_2", 2 * SIZE))
    await turns()
    assert guest(rig).orders == []
    copies.let_go("vol_1")
    await asyncio.gather(copy, growing)
    assert guest(rig).orders == [("grow", 3, 2 * SIZE)]


# Beside a suspend, or a copy of the VM

Sleep = Callable[[VmManager], Awaitable[object]]


async def suspend(manager: VmManager) -> None:
    await manager.suspend("vm_one")


async def fork(manager: VmManager) -> None:
    await manager.fork("vm_one", [ForkIdentity("vm_two", "two")])


async def running_to_fork(rig: EngineRig, sleep: Sleep) -> VmManager:
    """With a volume that it writes to; where it is to be copied, which a VM with such a volume is not, its specification
    does not know of it."""
    if sleep is suspend:
        return await running(rig)
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE)
    await started(manager, replace(spec(rig, volumes=()), snapshot_safe=True))
    manager.volumes.holdings.hold("vm_one", (mount(),))
    return manager


async def asked_beside_a_copy(
    manager: VmManager, copies: Copies, sleep: Sleep
) -> tuple[asyncio.Task[None], asyncio.Future[object]]:
    """A volume is being copied, and then this is asked for; both go on."""
    copy = taking(manager)
    await eventually(lambda: copies.begun)
    sleeping = asyncio.ensure_future(sleep(manager))
    await turns()
    return copy, sleeping


@pytest.mark.parametrize("sleep", [suspend, fork])
async def test_a_vm_that_stands_still_for_a_copy_is_held_for_nothing_else_until_that_is_done(
    rig: EngineRig, copies: Copies, sleep: Sleep
) -> None:
    manager = await running_to_fork(rig, sleep)
    copy, sleeping = await asked_beside_a_copy(manager, copies, sleep)
    assert not guest(rig).held
    assert rig.vmms.standing_still() == {"vm_one"}
    copies.let_go("vol_1")
    await asyncio.gather(copy, sleeping)
    assert copies.stood == {"vol_1": True}
    assert await snapshots(manager) == 1
    await reaches(manager, "vm_one", S.SUSPENDED if sleep is suspend else S.RUNNING)
    assert not rig.vmms.standing_still()


@pytest.mark.parametrize("sleep", [suspend, fork])
async def test_who_gives_up_waiting_for_a_copy_leaves_the_vm_standing_for_it(
    rig: EngineRig, copies: Copies, sleep: Sleep
) -> None:
    manager = await running_to_fork(rig, sleep)
    copy, sleeping = await asked_beside_a_copy(manager, copies, sleep)
    sleeping.cancel()
    await asyncio.wait({sleeping})
    assert manager.get("vm_one").status.state is S.RUNNING
    copies.let_go("vol_1")
    await copy
    assert copies.stood == {"vol_1": True}


async def test_a_suspend_does_not_wait_for_a_copy_without_end(
    rig: EngineRig, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmavmc.sleeping.TURN_S", 0.01)
    manager = await running(rig)
    copy = taking(manager)
    await eventually(lambda: copies.begun)
    assert await refused(manager.suspend("vm_one")) == "vm-busy"
    assert manager.get("vm_one").status.state is S.RUNNING
    copies.let_go("vol_1")
    await copy
    assert copies.stood == {"vol_1": True}
    await manager.suspend("vm_one")
    await manager.resume("vm_one")
    await manager.volumes.snapshot("vol_1", "snap_later")


async def test_a_volume_does_not_wait_to_grow_without_end(
    rig: EngineRig, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmavmc.mounted.TURN_S", 0.01)
    manager = await running(rig, TWO)
    copy = taking(manager)
    await eventually(lambda: copies.begun)
    assert await refused(manager.volumes.resize("vol_2", 2 * SIZE)) == "vm-busy"
    copies.let_go("vol_1")
    await copy
    await manager.volumes.resize("vol_2", 2 * SIZE)
    assert set(rig.vmms.grown("vm_one").values()) == {2 * SIZE}


# Beside an end


async def for_ever(_seconds: float) -> None:
    await asyncio.Event().wait()


class Watched(MemoryGuest):
    """Takes its time to end, and knows whether it ran when it was asked to."""

    def __init__(self) -> None:
        super().__init__(_deaf, sleep=for_ever)
        self.rig: EngineRig | None = None
        self.ran: list[bool] = []

    def stop(self, number: int, grace_s: float) -> None:
        assert self.rig is not None
        self.ran.append("vm_one" not in self.rig.vmms.standing_still())
        super().stop(number, grace_s)


def _deaf(_config: GuestConfig) -> Script:
    return Script(stop_code=None)


async def test_a_guest_that_stands_still_for_a_copy_runs_on_to_end_in_its_own_way(tmp_path: Path) -> None:
    rig = EngineRig(tmp_path, vmms=PretendedVmms(lambda _spec: Watched()))
    copies = Copies(rig)
    manager = await running(rig)
    watched = guest(rig)
    assert isinstance(watched, Watched)
    watched.rig = rig
    copy = taking(manager)
    await eventually(lambda: copies.begun)
    stopping = asyncio.create_task(manager.stop("vm_one", HOUR))
    await eventually(lambda: watched.ran)
    assert watched.ran == [True]
    watched.exit(0)
    async with asyncio.timeout(DEADLINE_S):
        assert (await stopping).status.exit_code == 0
    copies.let_go("vol_1")
    assert await refused(copy) == "volume-busy"
    assert await snapshots(manager) == 0


async def test_a_snapshot_that_was_broken_off_is_taken_once_when_it_is_asked_for_again(
    rig: EngineRig, copies: Copies
) -> None:
    manager = await running(rig)
    copy = taking(manager)
    await eventually(lambda: copies.begun)
    stopping = asyncio.create_task(manager.stop("vm_one", 0))
    await turns()
    copies.let_go("vol_1")
    assert await refused(copy) == "volume-busy"
    await stopping
    await taking(manager)
    assert await snapshots(manager) == 1
    await taking(manager)
    assert copies.begun == ["vol_1", "vol_1"]
    assert await snapshots(manager) == 1


@pytest.mark.parametrize("end", ["stop", "delete", "close", "let go"])
async def test_an_end_waits_for_no_copy(rig: EngineRig, copies: Copies, end: str) -> None:
    manager = await running(rig, TWO)
    orders: list[asyncio.Future[None]] = [taking(manager, "vol_1"), taking(manager, "vol_2")]
    await eventually(lambda: copies.begun)
    orders.append(asyncio.ensure_future(manager.suspend("vm_one")))
    await turns()
    ends = {
        "stop": lambda: manager.stop("vm_one", HOUR),
        "delete": lambda: manager.delete("vm_one"),
        "close": lambda: manager.close(keep_vms=False),
        "let go": lambda: manager.close(keep_vms=True),
    }
    async with asyncio.timeout(DEADLINE_S):
        await ends[end]()
    copies.let_go("vol_1", "vol_2")
    outcomes = await asyncio.gather(*orders, return_exceptions=True)
    if end != "let go":
        assert [type(each) for each in outcomes[:2]] == [UnavailableError, UnavailableError]
        assert [await snapshots(manager, each) for each in ("vol_1", "vol_2")] == [0, 0]
    assert isinstance(outcomes[2], asyncio.CancelledError | ConflictError | UnavailableError)


async def test_a_copy_that_waited_for_its_turn_is_none_of_a_vm_that_has_ended_meanwhile(
    rig: EngineRig, copies: Copies
) -> None:
    manager = await running(rig, TWO)
    both = [taking(manager, "vol_1"), taking(manager, "vol_2")]
    await eventually(lambda: copies.begun)
    await turns()
    rig.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.FAILED)
    copies.let_go("vol_1", "vol_2")
    assert await refused(both[1]) == "volume-busy"
    await asyncio.wait(both)
    assert copies.begun == ["vol_1"]


async def test_a_vm_is_not_left_standing_by_who_goes_away_before_it_stood(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    pause = MemoryBackend.pause_vm

    async def slowly(backend: MemoryBackend, handle: VmHandle) -> None:
        await pause(backend, handle)
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryBackend, "pause_vm", slowly)
    copy = taking(manager)
    await eventually(rig.vmms.standing_still)
    copy.cancel()
    await asyncio.wait({copy})
    assert not rig.vmms.standing_still()
