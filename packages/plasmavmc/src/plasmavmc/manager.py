"""The engine: all VMs of a node.

`VmManager` gives orders to the VMs of its `Machines`. Orders are idempotent by VM id and return as soon as they are taken
(`create`, `start`) or done (`stop`, `delete`); what becomes of a VM is seen by `list_vms` and told by `changed`.

At its start the manager asks the host, not its memory: `recover` adopts each VM whose process still lives (pid and
start time agree), marks the others ended, and then sweeps away whatever carries this installation's names and belongs
to no VM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace

import structlog

from plasmavmc.backends import SnapshotHost
from plasmavmc.errors import ConflictError, InvalidSpecError, PlasmaError
from plasmavmc.forking import copy_of
from plasmavmc.guest.api import CopyingChannel, ExecSession
from plasmavmc.host.operations import Guarding, Host, Keep, ProcessId, Swept
from plasmavmc.hypervisor.backend import Reserving
from plasmavmc.machines import Machines
from plasmavmc.moving import export_snapshot, import_snapshot, snapshot_host
from plasmavmc.parts import EngineParts
from plasmavmc.policy import Egress, Ingress
from plasmavmc.records import VmRecord
from plasmavmc.sleeping import SuspendableMachine
from plasmavmc.specs import check_egress, check_identity, check_ingress, check_spec, limited_networks
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import CopyTarget, ExecSpec, ForkIdentity, LogLine, NetworkUsage, TerminalSize, Vm, VmSpec, vm_key
from plasmavmc.volumes import Volumes

_WITHOUT_PROCESS = ENDED | {VmState.PENDING, VmState.SUSPENDED}
"""They are fenced as they begin."""

log = structlog.get_logger("plasmavmc.manager")


class VmManager:
    """See the module's head. One per installation and host."""

    def __init__(self, host: Host, parts: EngineParts) -> None:
        self._host = host
        self._parts = parts
        self._machines = Machines(parts)
        self._templates: set[asyncio.Task[None]] = set()
        parts.volumes.bind(self._machines.reach)
        parts.fences.bind(host)

    @property
    def volumes(self) -> Volumes:
        """The node's volumes."""
        return self._parts.volumes

    @property
    def guarding(self) -> Guarding:
        """How frames of VMs are checked on this host."""
        return self._parts.network.guarding

    @property
    def lacks_ipv6(self) -> str:
        """Why VMs get no private address here; empty where they do. Known once it has recovered."""
        return self._parts.network.lacks_ipv6

    async def fence(self, until: Mapping[str, float]) -> None:
        """Say of these volumes, and no others, until which moment of the monotonic clock VMs here may have them. What has
        one then is killed, also where this process stands still or is gone; from then on no VM begins with it.

        Raises:
            HostError, UnavailableError: the host cannot.
        """
        living = (m for m in self._machines if m.spec.volumes and m.state not in _WITHOUT_PROCESS)
        await self._parts.fences.set(until, [(machine.key, machine.spec.volumes) for machine in living])

    # Start and end of the engine

    async def recover(self, processes: tuple[ProcessId, ...] = ()) -> Swept:
        """Adopt what runs and sweep what is nobody's. `processes` of the installation beside VMs are spared."""
        await self._parts.network.configure_bridge()
        self._machines.load()
        living = [machine for machine in self._machines if machine.state not in ENDED]
        await asyncio.gather(*(_adopted(machine) for machine in living))
        await self._parts.network.settle()
        swept = await self._host.sweep(Keep(vms=self._machines.living(), processes=processes))
        await self._drop_unknown(self._machines.keys())
        return swept

    async def _drop_unknown(self, known: frozenset[str]) -> None:
        """Remove what lies on the host's disk and is of no VM."""
        for disk in await self._parts.storage.disks():
            if disk.key not in known:
                await self._parts.storage.delete(disk.key)
        for key in self._parts.snapshots.keys() - known:
            try:
                await self._parts.snapshots.delete(key)
            except PlasmaError as error:
                log.error("snapshot.not_removed", key=key, error=str(error))
        await self.sweep_logs()

    async def sweep_logs(self) -> int:
        """Remove the logs of VMs that are gone and whose time is over; returns how many.

        Raises:
            OSError: the disk cannot be read.
        """
        return await self._parts.logs.sweep(self._machines.keys)

    async def close(self, *, keep_vms: bool) -> None:
        """End the engine. Without `keep_vms` all VMs are stopped gracefully first, and what waits for VMs ends. Where a VMM
        does not end, its VM is left to the next engine."""
        if not keep_vms:
            await asyncio.gather(*(_stopped(machine) for machine in self._machines))
            for backend in self._parts.registry.backends():
                if isinstance(backend, Reserving):
                    await backend.dismiss()
        await asyncio.gather(*(machine.let_go() for machine in self._machines))
        await asyncio.gather(*self._templates)
        await self._parts.blanks.aclose()
        await self._parts.records.aclose()

    # VMs

    def create(self, spec: VmSpec) -> Vm:
        """Take note of a VM. The same id with the same spec again changes nothing.

        Raises:
            InvalidSpecError: a field makes no sense, or no backend can serve it.
            ConflictError: another VM has this id, or one with the same key.
        """
        check_spec(spec)
        present = self._machines.find(spec.id)
        if present is not None:
            if _same(present.record, spec):
                return present.view()
            raise ConflictError("vm-exists", f"VM {spec.id} exists with another specification")
        self._machines.check_new([spec])
        self._check_servable(spec)
        return self._machines.add(spec).view()

    def _check_servable(self, spec: VmSpec) -> None:
        """This host can give what the specification asks for."""
        lack = self._parts.network.cannot_limit
        if lack and (limited := limited_networks(spec)):
            raise InvalidSpecError(
                limited[0],
                f"this host cannot limit a network: {lack}",
                resolution="Leave the limit out, or give the host those modules: see plasmavmc doctor.",
            )
        self._parts.registry.select(spec, self._parts.images.kind_of(spec.image))

    def start(self, vm_id: str) -> Vm:
        """Let a VM begin; one that has begun already is left alone.

        Raises:
            NotFoundError: there is none.
        """
        machine = self._machines.get(vm_id)
        if machine.state is VmState.PENDING and not machine.begun:
            machine.start()
        return machine.view()

    async def stop(self, vm_id: str, grace_s: float | None = None) -> Vm:
        """End a VM gracefully; returns when it has ended. From the start of it nothing new comes in at published ports."""
        machine = self._machines.get(vm_id)
        try:
            await self._parts.network.retire(machine.key)
        except PlasmaError as error:
            log.warning("vm.not_retired", vm=vm_id, error=str(error))
        await machine.stop(machine.spec.stop_grace_s if grace_s is None else grace_s)
        return machine.view()

    async def delete(self, vm_id: str) -> None:
        """Stop a VM now if it runs, and remove it with its writable layer. Unknown ids are fine."""
        machine = self._machines.find(vm_id)
        if machine is None:
            return
        await machine.stop(0)
        await machine.delete()
        self._machines.remove(vm_id)

    async def restart(self, vm_id: str) -> Vm:
        """End a VM gracefully and run its specification anew, with a fresh writable layer, under the same id.

        Raises:
            NotFoundError: there is none.
            ConflictError: `spec-forgotten`, its environment or files were lost with an earlier life of the engine.
            InvalidSpecError, UnavailableError, HostError: no backend can serve it now; nothing was done.
        """
        machine = self._machines.get(vm_id)
        if machine.record.forgotten:
            raise ConflictError(
                "spec-forgotten",
                f"VM {vm_id} was given environment or files, which are never written to a disk; the engine has been"
                " restarted since and does not know them any more",
                resolution="Delete the VM, and create it again with them.",
            )
        self._check_servable(machine.spec)
        await machine.stop(machine.spec.stop_grace_s)
        await self.delete(vm_id)
        self.create(machine.spec)
        return self.start(vm_id)

    async def restrict(self, vm_id: str, egress: Egress) -> Vm:
        """Let a VM open connections to these destinations only, or (None) to all that is not closed to every VM; also those
        that are open are held to it. It lasts as long as the VM. Returns when it is in force.

        Raises:
            NotFoundError: there is none.
            InvalidSpecError: a destination makes no sense.
            HostError: the host refused; what it may is what it was.
        """
        machine = self._machines.get(vm_id)
        check_egress("egress", egress)
        await machine.restrict(egress)
        return machine.view()

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> Vm:
        """Have a VM be known by an identity (empty: by none), and let VMs of its network open to it what its ingress says
        only, or (None) anything; else as `restrict`, whose errors it raises."""
        machine = self._machines.get(vm_id)
        check_identity("identity", identity)
        check_ingress("ingress", ingress)
        await machine.screen(identity, ingress)
        return machine.view()

    async def suspend(self, vm_id: str) -> Vm:
        """Suspend a running VM to disk; returns when it has no process any more. A caller that is cancelled gives it
        up: the VM runs on. One that is suspended already is left alone.

        Raises:
            NotFoundError: there is none.
            ConflictError: `vm-…`, its state forbids it; `cannot-suspend`, its backend does.
            PlasmaError: it failed, with the reason; the VM runs on.
        """
        machine = self._machines.get(vm_id)
        await machine.suspend()
        return machine.view()

    async def resume(self, vm_id: str) -> Vm:
        """Run a suspended VM again; returns when its workload does. Any number may ask at once; one that runs is left
        alone.

        Raises:
            NotFoundError: there is none.
            ConflictError: `vm-…`, its state forbids it; `snapshot-foreign`, the host is not the one it was.
            HostError: `snapshot-damaged`, `snapshot-missing`, `snapshot-version`: nothing of it was or will be loaded.
            PlasmaError: it failed, with the reason. Where its snapshot still counts it stays suspended.
        """
        machine = self._machines.get(vm_id)
        await machine.resume()
        return machine.view()

    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity]) -> tuple[Vm, ...]:
        """Copy a running VM. It stands still for a moment; the copies are under way when this returns, and are VMs
        like any other: what becomes of each is in its status.

        Raises:
            NotFoundError: there is no such VM.
            InvalidSpecError: a copy's id or name makes no sense.
            ConflictError: `vm-exists`, `key-collision`; `not-snapshot-safe`, `cannot-fork`, `has-volumes`, `copy-of-copy`;
                `vm-…`, its state forbids it.
            PlasmaError: it failed, with the reason; the VM runs on, and there are no copies.
        """
        origin = self._machines.get(vm_id)
        self._machines.check_new([copy_of(origin.spec, identity) for identity in copies])
        template = await origin.template()
        async with AsyncExitStack() as undo:
            undo.push_async_callback(template.aclose)
            specs = [copy_of(origin.spec, identity) for identity in copies]  # what it may was perhaps changed meanwhile
            self._machines.check_new(specs)  # and others may have come
            machines = self._machines.add_all(specs)
            for machine in machines:
                machine.start_as_copy(template)
            keeping = asyncio.create_task(self._keep(undo.pop_all(), machines), name=f"template of {vm_id}")
            self._templates.add(keeping)
            keeping.add_done_callback(self._templates.discard)
        return tuple(machine.view() for machine in machines)

    async def _keep(self, template: AsyncExitStack, copies: Sequence[SuspendableMachine]) -> None:
        """Close a template when all copies have begun to run, or never will."""
        async with template:
            await asyncio.gather(*(copy.born() for copy in copies))

    async def snapshot_hosts(self) -> tuple[SnapshotHost, ...]:
        """What snapshots depend on here, for each backend that takes any and whose program can be read. A snapshot of a
        VM goes to where its backend's are the same."""
        found = []
        for backend in self._parts.registry.backends():
            with suppress(PlasmaError):
                found.append(await snapshot_host(backend, self._parts))
        return tuple(host for host in found if host is not None)

    async def export_snapshot(self, vm_id: str) -> AsyncGenerator[bytes]:
        """A suspended VM, memory, state and disk, as a stream for `import_snapshot` of another engine. It stays what it
        is: who sends it elsewhere deletes it here before it runs there. Secrets may be in it.

        Raises:
            NotFoundError: there is none.
            ConflictError: `vm-…`, it does not sleep; `vm-woken`, it did not any more before the end; `has-volumes`.
            HostError: `snapshot-damaged`, `snapshot-missing`, `snapshot-version`, `snapshot-too-large`.
        """
        machine = self._machines.get(vm_id)
        if machine.state is not VmState.SUSPENDED:
            state = machine.state.value
            raise ConflictError(f"vm-{state}", f"VM {vm_id} is {state}; only a suspended one can be exported")
        async with aclosing(export_snapshot(machine.record, machine.key, self._parts)) as stream:
            async for chunk in stream:
                yield chunk

    async def import_snapshot(self, spec: VmSpec, stream: AsyncIterable[bytes]) -> Vm:
        """A suspended VM from what another engine exported, under a new id and with a place of its own in the network.
        Nothing is left of one that could not be taken in, whatever the reason. Environment and files of the
        specification are for a later restart: the memory has its own.

        Raises:
            InvalidSpecError: as `create`.
            ConflictError: `vm-exists`, `key-collision`, `has-volumes`; `snapshot-foreign`, naming what differs.
            HostError: `snapshot-damaged`, `snapshot-version`.
            CapacityError: `disk-full`.
            PlasmaError: what else failed, with the reason.
        """
        self._machines.check_new([spec])
        self._check_servable(spec)
        with self._machines.coming(spec) as key:
            return self._machines.enter(await import_snapshot(spec, key, stream, self._parts)).view()

    def get(self, vm_id: str) -> Vm:
        """A VM as it is now.

        Raises:
            NotFoundError: there is none.
        """
        return self._machines.get(vm_id).view()

    async def describe(self, vm_id: str) -> Vm:
        """As `get`, with what it takes of its host now."""
        machine = self._machines.get(vm_id)
        view = machine.view()
        return replace(view, status=replace(view.status, usage=await machine.usage()))

    async def traffic(self) -> Mapping[str, NetworkUsage]:
        """What has passed the interfaces of all VMs, by id, but for those whose frames are not counted."""
        ids = {machine.key: machine.spec.id for machine in self._machines}
        return {ids[key]: used for key, used in (await self._parts.network.usage(ids)).items()}

    def list_vms(self) -> tuple[Vm, ...]:
        """All VMs, oldest id first."""
        return tuple(machine.view() for machine in sorted(self._machines, key=lambda machine: machine.spec.id))

    @property
    def revision(self) -> int:
        """Rises with each change of any VM."""
        return self._machines.revision

    async def changed(self, since: int) -> int:
        """Return the revision as soon as it is above `since`."""
        return await self._machines.changed(since)

    # Reaching into a VM

    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        """Start a command in a running VM.

        Raises:
            NotFoundError: there is no such VM.
            ConflictError: its workload does not run.
            GuestError: the guest refused.
        """
        return await self._machines.get(vm_id).guest().exec(spec)

    def attach(self, vm_id: str, size: TerminalSize | None = None) -> ExecSession:
        """Join the workload's own stdin, stdout and stderr, from before its start to its end.

        Raises:
            NotFoundError: there is no such VM.
            ConflictError: `vm-ended`, it has ended.
        """
        return self._machines.get(vm_id).attach(size)

    async def copy_in(self, vm_id: str, target: CopyTarget) -> ExecSession:
        """Take a tree into a running VM, as a tar stream on the session's stdin; its exit code says how it went.

        Raises:
            NotFoundError, ConflictError: as `exec`; `cannot-copy`, its backend has not that ability.
            InvalidSpecError: no such path can be.
            GuestError: the guest refused.
        """
        return await self._copying(vm_id).copy_in(target)

    async def copy_out(self, vm_id: str, path: str) -> ExecSession:
        """Give a tree out of a running VM, as a tar stream on the session's stdout; raises as `copy_in`."""
        return await self._copying(vm_id).copy_out(path)

    def _copying(self, vm_id: str) -> CopyingChannel:
        channel = self._machines.get(vm_id).guest()
        if not isinstance(channel, CopyingChannel):
            raise ConflictError("cannot-copy", f"files cannot be copied into or out of VM {vm_id}: its backend cannot")
        return channel

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float = 0.0) -> AsyncIterator[LogLine]:
        """What a VM wrote, also after its end.

        Raises:
            NotFoundError: neither the VM nor its log exists.
        """
        machine = self._machines.find(vm_id)
        if machine is not None and machine.state not in ENDED:
            stored = self._parts.logs.open(machine.key)  # it may have written nothing yet
        else:
            found = self._parts.logs.find(vm_key(vm_id))
            if found is None:
                self._machines.get(vm_id)
                return
            stored = found
        if follow:
            async for line in stored.follow(tail, since):
                yield line
        else:
            async for line in stored.read(tail, since):
                yield line


async def _adopted(machine: SuspendableMachine) -> None:
    """Take a VM over. One with which that cannot be done ends; the engine begins all the same, for the others."""
    try:
        await machine.adopt()
    except Exception as error:
        log.exception("vm.not_adopted", vm=machine.spec.id)
        await machine.disown(error)


async def _stopped(machine: SuspendableMachine) -> None:
    """Stop a VM as the engine ends. One with which that fails does not keep the others."""
    try:
        await machine.stop(machine.spec.stop_grace_s)
    except PlasmaError as error:
        log.error("vm.not_stopped", vm=machine.spec.id, error=str(error))
    except Exception:
        log.exception("vm.stop_broke", vm=machine.spec.id)


def _same(stored: VmRecord, given: VmSpec) -> bool:
    """Equal, but for what a restart of the engine forgets on purpose, and what may have been changed since."""
    given = replace(given, env={}, files=()) if stored.forgotten else given
    return _unheld(stored.spec) == _unheld(given)


def _unheld(spec: VmSpec) -> VmSpec:
    networks = (replace(network, egress=None, identity="", ingress=None) for network in spec.networks)
    return replace(spec, networks=tuple(networks))
