"""All VMs of a node: a machine for each, the ids and keys that are taken, and what changes among them.

Theory. An id is taken from the moment at which its VM has a record, or begins to come from another host; so is its key,
the name of the VM's things on the host, which two ids may share by chance. Whoever follows the VMs waits for the revision
to rise, and looks at all of them again: a change is never missed, and several may be seen as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from plasmavmc.errors import ConflictError, NotFoundError
from plasmavmc.host.operations import ProcessId
from plasmavmc.hypervisor.process import process_of
from plasmavmc.mounted import RunningVm
from plasmavmc.parts import EngineParts
from plasmavmc.records import VmRecord
from plasmavmc.sleeping import SuspendableMachine
from plasmavmc.specs import check_spec
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import VmSpec, VmStatus, vm_key


class Machines:
    """The machines by VM id. Iterating gives them as they came."""

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts
        self._machines: dict[str, SuspendableMachine] = {}
        self._coming: dict[str, str] = {}
        """Keys of VMs that come from another host, with their ids."""
        self._revision = 0
        self._wake = asyncio.Event()

    def __iter__(self) -> Iterator[SuspendableMachine]:
        return iter(tuple(self._machines.values()))

    def find(self, vm_id: str) -> SuspendableMachine | None:
        """A machine, if there is one."""
        return self._machines.get(vm_id)

    def get(self, vm_id: str) -> SuspendableMachine:
        """A machine.

        Raises:
            NotFoundError: there is none.
        """
        try:
            return self._machines[vm_id]
        except KeyError:
            raise NotFoundError("vm-not-found", f"there is no VM {vm_id}") from None

    def keys(self) -> frozenset[str]:
        """The names on the host of all VMs."""
        return frozenset(machine.key for machine in self)

    def living(self) -> dict[str, ProcessId]:
        """The processes of VMs that have not ended, by the key under which the host knows them."""
        return {
            machine.record.handle.host_key: process_of(machine.record.handle)
            for machine in self
            if machine.state not in ENDED and machine.record.handle is not None
        }

    def reach(self, vm_id: str) -> RunningVm | None:
        """A VM for its volumes, while its workload runs."""
        machine = self._machines.get(vm_id)
        channel, handle = (None, None) if machine is None else (machine.channel, machine.record.handle)
        if machine is None or channel is None or handle is None:
            return None
        backend = self._parts.registry.get(handle.backend)
        return RunningVm(handle, backend, channel, machine.stillness, partial(machine.runs_with, channel))

    # Coming and going

    def check_new(self, specs: Sequence[VmSpec]) -> None:
        """All can be made, beside what there is and each other.

        Raises:
            InvalidSpecError: a field makes no sense.
            ConflictError: `vm-exists`, `key-collision`.
        """
        keys = self._coming | {machine.key: machine.spec.id for machine in self}
        for spec in specs:
            check_spec(spec)
            if spec.id in self._machines or spec.id in keys.values():
                raise ConflictError("vm-exists", f"VM {spec.id} exists already")
            if vm_key(spec.id) in keys:
                words = f"another VM has the key of {spec.id}"
                raise ConflictError("key-collision", words, resolution="Use another id.")
            keys[vm_key(spec.id)] = spec.id

    @contextmanager
    def coming(self, spec: VmSpec) -> Iterator[str]:
        """The key of a VM that is coming from another host; for the block no other takes its id or key."""
        key = vm_key(spec.id)
        self._coming[key] = spec.id
        try:
            yield key
        finally:
            del self._coming[key]

    def load(self) -> None:
        """Know the VMs of the engine's earlier life, as it left them."""
        for record in self._parts.records.load():
            self._machines[record.spec.id] = SuspendableMachine(record, self._parts, self.notify)

    def add(self, spec: VmSpec) -> SuspendableMachine:
        """A new VM, which has not begun.

        Raises:
            CapacityError, HostError: it cannot be written down, or have a log.
        """
        record = VmRecord(spec, VmStatus(VmState.PENDING, self._parts.clock()))
        self._parts.logs.begin(vm_key(spec.id), spec.scope)
        self._parts.records.save(record)
        return self.enter(record)

    def add_all(self, specs: Sequence[VmSpec]) -> list[SuspendableMachine]:
        """New VMs, which have not begun, or none; raises as `add`."""
        with ExitStack() as undo:
            machines = []
            for spec in specs:
                machines.append(self.add(spec))
                undo.callback(self._drop, spec.id)
            undo.pop_all()
        return machines

    def _drop(self, vm_id: str) -> None:
        self._parts.records.delete(vm_id)
        self.remove(vm_id)

    def enter(self, record: VmRecord) -> SuspendableMachine:
        """A VM whose record is there, and whose log has begun."""
        machine = SuspendableMachine(record, self._parts, self.notify)
        self._machines[record.spec.id] = machine
        self.notify()
        return machine

    def remove(self, vm_id: str) -> None:
        """Forget a VM that is gone."""
        self._machines.pop(vm_id, None)
        self.notify()

    # Following

    @property
    def revision(self) -> int:
        """Rises with each change of any VM."""
        return self._revision

    def notify(self) -> None:
        """Something changed."""
        self._revision += 1
        self._wake.set()

    async def changed(self, since: int) -> int:
        """Return the revision as soon as it is above `since`."""
        while self._revision <= since:
            self._wake.clear()
            await self._wake.wait()
        return self._revision
