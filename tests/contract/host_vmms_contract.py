"""What every `Host` must do for VMMs and what they need: uids, processes, fences, limits, sockets, and the sweep."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from dataclasses import replace

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.operations import (
    Keep,
    Limits,
    ProcessId,
    RuleSet,
    Spawned,
)
from plasmavmc.types import MIB
from tests.contract.host_parts import (
    DEADLINE_S,
    FENCE_S,
    LIMITS,
    ONE,
    TWO,
    HostRig,
    end,
    has_ended,
    identity,
    let_go,
    refused,
    start,
)


class HostVmmsContract:
    """Subclasses give the fixture `rig`."""

    async def test_a_key_has_one_uid_of_the_range_until_it_is_freed(self, rig: HostRig) -> None:
        uid = await rig.host.uid_take(ONE)
        assert uid in rig.uids
        assert await rig.host.uid_take(ONE) == uid
        assert await rig.host.uid_take(TWO) != uid
        await rig.host.uid_free(ONE)
        await rig.host.uid_free(ONE)

    async def test_a_key_that_is_none_is_refused(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.uid_take("../../etc/passwd"))
        await refused("helper-refused", rig.host.uid_take("UPPERCASE222"))

    async def test_a_uid_may_come_with_a_process_that_becomes_the_vmm(self, rig: HostRig) -> None:
        await rig.host.seat_make(kvm=False)
        await rig.host.seat_make(kvm=False)
        for key in (ONE, TWO):
            uid = await rig.host.uid_take(key, seat=True)
            assert uid in rig.uids
            assert await rig.host.uid_take(key, seat=True) == uid
            await end(rig, await rig.host.vm_spawn(key, rig.argv(key), LIMITS, {}), key)

    async def test_a_uid_that_came_with_a_process_may_be_freed_unused(self, rig: HostRig) -> None:
        await rig.host.seat_make(kvm=False)
        await rig.host.uid_take(ONE, seat=True)
        await rig.host.uid_free(ONE)
        await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))

    async def test_a_vmm_runs_until_it_is_killed_and_is_reaped_once(self, rig: HostRig) -> None:
        spawned = await start(rig)
        assert spawned.confinement in ("cgroup-v2", "cgroup-v1", "rlimits")
        assert not has_ended(spawned)
        assert await end(rig, spawned) == -signal.SIGKILL
        assert await rig.host.vm_reap(ONE, identity(spawned)) is None

    async def test_a_running_vmm_cannot_be_reaped(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await refused("vm-running", rig.host.vm_reap(ONE, identity(spawned)))
        await end(rig, spawned)

    async def test_a_fenced_vmm_ends_at_its_moment_and_none_begins_under_that_key(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        await rig.host.vm_fence(ONE, time.monotonic() + 10 * DEADLINE_S)
        spawned = await start(rig)
        moment = time.monotonic() + FENCE_S
        await rig.host.vm_fence(ONE, moment)
        assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
        assert time.monotonic() >= moment
        let_go(spawned)
        assert await rig.host.vm_reap(ONE, identity(spawned)) == -signal.SIGKILL
        await refused("fenced", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
        await rig.host.vm_fence(ONE, time.monotonic() + DEADLINE_S)
        again = await start(rig)
        await end(rig, again)

    async def test_what_was_said_last_counts(self, rig: HostRig) -> None:
        later, lifted = await start(rig, ONE), await start(rig, TWO)
        moment = time.monotonic() + FENCE_S
        for key in (ONE, TWO):
            await rig.host.vm_fence(key, moment)
        await rig.host.vm_fence(ONE, moment + FENCE_S)
        await rig.host.vm_fence(TWO, None)
        assert await asyncio.to_thread(has_ended, later, DEADLINE_S)
        assert time.monotonic() >= moment + FENCE_S
        assert not has_ended(lifted)
        let_go(later)
        await end(rig, lifted, TWO)

    async def test_a_fence_goes_with_its_uid(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        await rig.host.vm_fence(ONE, time.monotonic() - 1)
        await rig.host.uid_free(ONE)
        spawned = await start(rig)
        await end(rig, spawned)

    @pytest.mark.parametrize("moment", [float("nan"), float("inf"), 1e12])
    async def test_a_fence_that_is_no_moment_is_refused(self, rig: HostRig, moment: float) -> None:
        await refused("helper-refused", rig.host.vm_fence(ONE, moment))

    async def test_a_vmm_that_nobody_started_has_no_code(self, rig: HostRig) -> None:
        assert await rig.host.vm_reap(ONE, ProcessId(1, 1)) is None

    async def test_the_callers_descriptors_stay_the_callers(self, rig: HostRig) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            await rig.host.uid_take(ONE)
            argv = rig.argv(
                ONE, "-chardev", "socket,id=q0,fd=@qmp@,server=on,wait=off", "-mon", "chardev=q0,mode=control"
            )
            spawned = await rig.host.vm_spawn(ONE, argv, LIMITS, {"qmp": server.fileno()})
            os.fstat(server.fileno())
        await end(rig, spawned)

    async def test_a_vmm_needs_a_uid(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))

    async def test_a_key_runs_once(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
        await end(rig, spawned)

    async def test_what_is_not_a_vmm_of_ours_is_refused(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        for argv in (
            ("/bin/sh", "-name", rig.names.process(ONE)),
            (),
            rig.argv(TWO),
            rig.argv(ONE, "-monitor", "stdio"),
            rig.argv(ONE, "-chardev", "file,id=x,path=/tmp/x"),
            rig.argv(ONE, "-add-fd", "fd=@image@,set=1"),
        ):
            await refused("helper-refused", rig.host.vm_spawn(ONE, argv, LIMITS, {}))

    async def test_limits_that_make_no_sense_are_refused(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        for limits in (Limits(0, 1000), Limits(256 * MIB, 0), Limits(256 * MIB, 1000, pids=0)):
            await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), limits, {}))

    async def test_limits_of_a_running_vmm_can_be_changed_and_of_no_other(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await rig.host.vm_limit(ONE, Limits(512 * MIB, 500, pids=32))
        await refused("helper-refused", rig.host.vm_limit(ONE, Limits(0, 1000)))
        await refused("helper-refused", rig.host.vm_limit(TWO, LIMITS))
        await end(rig, spawned)
        await refused("helper-refused", rig.host.vm_limit(ONE, LIMITS))

    async def test_a_signal_never_reaches_another_process(self, rig: HostRig) -> None:
        spawned = await start(rig)
        later = replace(identity(spawned), start_time=spawned.start_time + 1)
        assert await rig.host.vm_signal(ONE, later, signal.SIGKILL) is False
        await rig.host.uid_take(TWO)
        await refused("helper-refused", rig.host.vm_signal(TWO, identity(spawned), signal.SIGKILL))
        await refused("helper-refused", rig.host.vm_signal(ONE, identity(spawned), signal.SIGUSR1))
        assert not has_ended(spawned)
        await end(rig, spawned)
        assert await rig.host.vm_signal(ONE, identity(spawned), signal.SIGKILL) is False

    async def test_a_guests_memory_can_be_read_and_is_never_anothers(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        shared = ("-object", "memory-backend-memfd,id=mem,size=2M,share=on")
        spawned = await rig.host.vm_spawn(ONE, rig.argv(ONE, *shared), LIMITS, {})
        memory = await self._memory(rig, spawned)
        assert fcntl.fcntl(memory, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(memory)
        os.close(memory)
        later = replace(identity(spawned), start_time=spawned.start_time + 1)
        await refused("no-process", rig.host.vm_memory(ONE, later))
        await refused("helper-refused", rig.host.vm_memory(TWO, identity(spawned)))
        await rig.host.uid_take(TWO)
        await refused("helper-refused", rig.host.vm_memory(TWO, identity(spawned)))
        await refused("helper-refused", rig.host.vm_memory("../../1", identity(spawned)))
        await end(rig, spawned)

    async def _memory(self, rig: HostRig, spawned: Spawned) -> int:
        """A VMM that has just been started makes its memory in a moment."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return await rig.host.vm_memory(ONE, identity(spawned))
                except HostError as error:
                    if error.code != "no-memory":
                        raise
                    await asyncio.sleep(0.01)

    async def test_a_vmm_without_shared_memory_has_none_to_read(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await refused("no-memory", rig.host.vm_memory(ONE, identity(spawned)))
        await end(rig, spawned)

    async def test_an_ended_process_cannot_be_placed(self, rig: HostRig) -> None:
        await refused("no-process", rig.host.cgroup_place("haproxy", ProcessId(os.getpid(), 1)))

    async def test_a_cgroups_name_is_a_word(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.cgroup_place("../..", ProcessId(os.getpid(), 1)))

    async def test_a_listener_given_at_the_start_accepts(self, rig: HostRig) -> None:
        with socket.socket(fileno=await rig.host.listen(rig.listener.address, rig.listener.port)) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0

    async def test_a_taken_port_is_told_with_a_remedy(self, rig: HostRig) -> None:
        fd = await rig.host.listen(rig.listener.address, rig.listener.port)
        with pytest.raises(HostError) as caught:
            await rig.host.listen(rig.listener.address, rig.listener.port)
        assert caught.value.code == "port-taken"
        assert "ss -ltnp" in caught.value.resolution
        os.close(fd)

    async def test_another_port_is_refused(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.listen(rig.listener.address, rig.listener.port + 1))
        await refused("helper-refused", rig.host.listen("0.0.0.0", rig.listener.port))  # noqa: S104 - refused

    async def test_a_sweep_leaves_what_is_kept_and_removes_the_rest(self, rig: HostRig) -> None:
        kept, doomed = await start(rig, ONE), await start(rig, TWO)
        doomed_uid = await rig.host.uid_take(TWO)
        swept = await rig.host.sweep(Keep({ONE: identity(kept)}))
        assert doomed.pid in swept.processes
        assert swept.uids == (doomed_uid,)
        assert await asyncio.to_thread(has_ended, doomed, DEADLINE_S)
        assert not has_ended(kept)
        let_go(doomed)
        await end(rig, kept)

    async def test_a_sweep_keeps_a_process_and_not_its_number(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await rig.host.sweep(Keep({ONE: replace(identity(spawned), start_time=spawned.start_time + 1)}))
        assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
        let_go(spawned)

    async def test_a_sweep_of_nothing_finds_nothing(self, rig: HostRig) -> None:
        await rig.host.sweep(Keep())
        swept = await rig.host.sweep(Keep())
        assert (swept.processes, swept.taps, swept.cgroups, swept.uids) == ((), (), (), ())

    async def test_an_installation_with_vms_is_not_dismantled(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        spawned = await start(rig)
        await refused("vms-left", rig.host.dismantle())
        assert not has_ended(spawned)
        await end(rig, spawned)

    async def test_after_dismantling_nothing_is_there(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        await rig.host.rules_apply(RuleSet(rig.bridge, (rig.member(ONE, 2),)))
        await rig.host.dismantle()
        await rig.host.dismantle()
        await refused("no-bridge", rig.host.tap_open(rig.tap()))
