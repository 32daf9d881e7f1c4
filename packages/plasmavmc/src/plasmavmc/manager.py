"""The engine: all VMs of a node.

`VmManager` holds a `Machine` per VM. Orders are idempotent by VM id and return as soon as they are taken (`create`,
`start`) or done (`stop`, `delete`); what becomes of a VM is seen by `list_vms` and told by `changed`.

At its start the manager asks the host, not its memory: `recover` adopts each VM whose process still lives (pid and start
time agree), marks the others ended, and then sweeps away whatever carries this installation's names and belongs to no VM.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import structlog

from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError
from plasmavmc.guest.api import ExecSession
from plasmavmc.host.operations import Host, Keep, ProcessId, Swept
from plasmavmc.machine import Machine
from plasmavmc.parts import EngineParts
from plasmavmc.records import VmRecord
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import ExecSpec, LogLine, Vm, VmSpec, VmStatus, check_digest, check_id, vm_key

_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")
MAX_ENV_BYTES = 1024 * 1024

log = structlog.get_logger("plasmavmc.manager")


class VmManager:
    """See the module's head. One per installation and host."""

    def __init__(self, host: Host, parts: EngineParts) -> None:
        self._host = host
        self._parts = parts
        self._machines: dict[str, Machine] = {}
        self._revision = 0
        self._wake = asyncio.Event()

    # Start and end of the engine

    async def recover(self, processes: tuple[ProcessId, ...] = ()) -> Swept:
        """Adopt what runs and sweep what is nobody's. `processes` of the installation beside VMs are spared."""
        await self._parts.network.configure_bridge()
        for record in self._parts.records.load():
            self._machines[record.spec.id] = Machine(record, self._parts, self._notify)
        living = [machine for machine in self._machines.values() if machine.state not in ENDED]
        await asyncio.gather(*(machine.adopt() for machine in living))
        await self._parts.network.settle()
        swept = await self._host.sweep(Keep(vms=self._living(), processes=processes))
        await self._drop_unknown_disks()
        self._parts.logs.sweep(frozenset(machine.key for machine in self._machines.values()))
        return swept

    def _living(self) -> dict[str, ProcessId]:
        return {
            machine.record.handle.host_key: ProcessId(machine.record.handle.pid, machine.record.handle.start_time)
            for machine in self._machines.values()
            if machine.state not in ENDED and machine.record.handle is not None
        }

    async def _drop_unknown_disks(self) -> None:
        known = {machine.key for machine in self._machines.values()}
        for disk in await self._parts.storage.disks():
            if disk.key not in known:
                await self._parts.storage.delete(disk.key)

    async def close(self, *, keep_vms: bool) -> None:
        """End the engine. Without `keep_vms` each VM is stopped gracefully first, all at once."""
        machines = list(self._machines.values())
        if keep_vms:
            await asyncio.gather(*(machine.let_go() for machine in machines))
        else:
            await asyncio.gather(*(machine.stop(machine.spec.stop_grace_s) for machine in machines))

    # VMs

    def create(self, spec: VmSpec) -> Vm:
        """Take note of a VM. The same id with the same spec again changes nothing.

        Raises:
            InvalidSpecError: a field makes no sense, or no backend can serve it.
            ConflictError: another VM has this id, or one with the same key.
        """
        check_spec(spec)
        present = self._machines.get(spec.id)
        if present is not None:
            if _same(present.spec, spec):
                return present.view()
            raise ConflictError("vm-exists", f"VM {spec.id} exists with another specification")
        if any(machine.key == vm_key(spec.id) for machine in self._machines.values()):
            raise ConflictError("key-collision", f"another VM has the key of {spec.id}", resolution="Use another id.")
        self._parts.registry.select(spec, self._parts.images.kind_of(spec.image))
        record = VmRecord(spec, VmStatus(VmState.PENDING, self._parts.clock()))
        machine = Machine(record, self._parts, self._notify)
        self._parts.records.save(record)
        self._machines[spec.id] = machine
        self._notify()
        return machine.view()

    def start(self, vm_id: str) -> Vm:
        """Let a VM begin; one that has begun already is left alone.

        Raises:
            NotFoundError: there is none.
        """
        machine = self._machine(vm_id)
        if machine.state is VmState.PENDING and not machine.begun:
            machine.start()
        return machine.view()

    async def stop(self, vm_id: str, grace_s: float | None = None) -> Vm:
        """End a VM gracefully; returns when it has ended."""
        machine = self._machine(vm_id)
        await machine.stop(machine.spec.stop_grace_s if grace_s is None else grace_s)
        return machine.view()

    async def delete(self, vm_id: str) -> None:
        """Stop a VM now if it runs, and remove it with its writable layer. Unknown ids are fine."""
        machine = self._machines.get(vm_id)
        if machine is None:
            return
        await machine.stop(0)
        await machine.delete()
        self._machines.pop(vm_id, None)
        self._notify()

    def get(self, vm_id: str) -> Vm:
        """A VM as it is now.

        Raises:
            NotFoundError: there is none.
        """
        return self._machine(vm_id).view()

    async def describe(self, vm_id: str) -> Vm:
        """As `get`, with what the VMM uses now."""
        machine = self._machine(vm_id)
        view = machine.view()
        return replace(view, status=replace(view.status, usage=await machine.usage()))

    def list_vms(self) -> tuple[Vm, ...]:
        """All VMs, oldest id first."""
        return tuple(self._machines[vm_id].view() for vm_id in sorted(self._machines))

    @property
    def revision(self) -> int:
        """Rises with each change of any VM."""
        return self._revision

    async def changed(self, since: int) -> int:
        """Return the revision as soon as it is above `since`."""
        while self._revision <= since:
            self._wake.clear()
            await self._wake.wait()
        return self._revision

    # Reaching into a VM

    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        """Start a command in a running VM.

        Raises:
            NotFoundError: there is no such VM.
            ConflictError: its workload does not run.
            GuestError: the guest refused.
        """
        machine = self._machine(vm_id)
        channel = machine.channel
        if channel is None:
            raise ConflictError(
                "vm-not-running",
                f"VM {vm_id} is {machine.state.value}",
                resolution="Commands can be run in a running VM only.",
            )
        return await channel.exec(spec)

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float = 0.0) -> AsyncIterator[LogLine]:
        """What a VM wrote, also after its end.

        Raises:
            NotFoundError: neither the VM nor its log exists.
        """
        machine = self._machines.get(vm_id)
        if machine is not None and machine.state not in ENDED:
            stored = self._parts.logs.open(machine.key)  # it may have written nothing yet
        else:
            found = self._parts.logs.find(vm_key(vm_id))
            if found is None:
                self._machine(vm_id)
                return
            stored = found
        if follow:
            async for line in stored.follow(tail, since):
                yield line
        else:
            for line in stored.tail(tail, since):
                yield line

    # Small parts

    def _machine(self, vm_id: str) -> Machine:
        try:
            return self._machines[vm_id]
        except KeyError:
            raise NotFoundError("vm-not-found", f"there is no VM {vm_id}") from None

    def _notify(self) -> None:
        self._revision += 1
        self._wake.set()


def _same(stored: VmSpec, given: VmSpec) -> bool:
    """Equal, but for what a restart of the engine forgets on purpose."""
    if not stored.env and not stored.files:
        given = replace(given, env={}, files=())
    return stored == given


def check_spec(spec: VmSpec) -> None:
    """Refuse a spec that makes no sense, before anything is done for it.

    Raises:
        InvalidSpecError: with the field at fault.
    """
    check_id("id", spec.id)
    check_digest("image", spec.image)
    if not _HOSTNAME.fullmatch(spec.hostname or spec.name):
        raise InvalidSpecError("name", "a name has 1 to 63 characters of a-z, 0-9 and -")
    resources = spec.resources
    if resources.memory_bytes < 64 << 20:
        raise InvalidSpecError("resources.memory_bytes", "a microVM needs 64 MiB at least")
    if resources.vcpus < 1 or resources.cpu_milli < 10:
        raise InvalidSpecError("resources", "a microVM needs one vCPU and 10 milli-CPU at least")
    if len(spec.networks) > 1:
        raise InvalidSpecError("networks", "one network interface at most")
    for name, value in spec.env.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in value:
            raise InvalidSpecError(
                "env", f"{name[:64]!r} is not a name for an environment variable, or its value has a NUL"
            )
    if sum(len(name) + len(value) for name, value in spec.env.items()) > MAX_ENV_BYTES:
        raise InvalidSpecError("env", "the environment is larger than 1 MiB")
