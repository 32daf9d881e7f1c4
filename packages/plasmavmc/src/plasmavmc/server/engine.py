"""This host's VMs for the gRPC services. Implements `VmApi` over `VmManager`.

Theory. What the manager knows is one host; what is added here is that several tenants share it. Network ids are each
project's own: inside they carry the project's key, so that nobody joins another's network by its name. A MAC address is
made from the VM's id, and one that is given must be free. Images are looked up in the VM's project, then among what all
may use.

Orders on one VM that end or remake it come one after another: two of them at once would take each other's disk away. An id
may become another project's while an order waits; the order was allowed on the VM of before, and does nothing to that one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError, PlasmaError
from plasmavmc.guest.api import ExecSession
from plasmavmc.images.locks import KeyedLocks
from plasmavmc.manager import VmManager
from plasmavmc.policy import Egress, Ingress
from plasmavmc.rpc.access import Reach
from plasmavmc.rpc.api import Position, VmEvent, VmFilter
from plasmavmc.rpc.vms import vm_not_found
from plasmavmc.rpc.watch import KEPT_CHANGES, History
from plasmavmc.server.catalogue import Catalogue
from plasmavmc.server.node import EngineNode
from plasmavmc.server.ports import PublishedPorts
from plasmavmc.specs import check_spec
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import (
    CopyTarget,
    ExecSpec,
    ForkIdentity,
    LogLine,
    NetworkSpec,
    Scope,
    TerminalSize,
    Vm,
    VmSpec,
    mac_of,
    vm_key,
)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A specification as the manager has it, and as its tenant knows it."""

    inside: VmSpec
    outside: VmSpec


class EngineVms:
    """See the module's head. `follow` must run for watchers to hear of anything."""

    def __init__(
        self, manager: VmManager, catalogue: Catalogue, node: EngineNode, *, kept_changes: int = KEPT_CHANGES
    ) -> None:
        self._manager = manager
        self._catalogue = catalogue
        self._node = node
        self._history = History(kept=kept_changes)
        self._locks = KeyedLocks()
        self._shown: dict[str, _Shown] = {}
        self._ports = PublishedPorts()

    async def follow(self) -> None:
        """Take note of every change, for ever. Published ports are open while this runs."""
        self._ports.adopt(self._manager.list_vms())
        try:
            while True:
                revision = self._manager.revision
                present = self._all()
                self._ports.follow(present)
                self._history.note(present)
                self._node.tell_news()
                await self._manager.changed(revision)
        finally:
            self._ports.aclose()

    # VmApi

    async def create(self, spec: VmSpec, *, start: bool) -> Vm:
        inside = self._inside(spec)
        check_spec(inside)  # before any port of it is opened
        if self._owner(spec.id) not in (None, spec.scope):  # there is no waiting for what others do with their VM
            raise ConflictError("vm-exists", f"VM {spec.id} exists with another specification")
        async with self._locks.hold(spec.id):
            if self._owner(spec.id) is None:
                self._node.check_open()
                with self._node.promising({spec.id: spec.resources}):
                    self._check_macs(inside)
                    self._ports.open(spec.id, spec.published)
            try:
                vm = self._manager.create(self._numbered(inside))
                return self._outside(self._start(vm) if start else vm)
            except PlasmaError:
                self._close_unused_ports(spec.id)
                raise

    async def start(self, vm_id: str) -> Vm:
        return self._outside(self._start(self._manager.get(vm_id)))

    async def stop(self, vm_id: str, grace_s: float | None) -> Vm:
        return self._outside(await self._manager.stop(vm_id, grace_s))

    async def restart(self, vm_id: str) -> Vm:
        self._node.check_open()
        owner = self._owner(vm_id)
        async with self._locks.hold(vm_id):
            if self._owner(vm_id) != owner:
                raise vm_not_found(vm_id)
            present = self._manager.get(vm_id)
            with self._node.promising({vm_id: present.spec.resources}):
                if present.status.state in ENDED:
                    self._check_macs(present.spec)
                    self._ports.open(vm_id, present.spec.published)
                else:
                    self._ports.adopt((present,))
                try:
                    with self._ports.keeping(vm_id):
                        return self._outside(await self._manager.restart(vm_id))
                finally:
                    self._close_unused_ports(vm_id)

    async def suspend(self, vm_id: str) -> Vm:
        return self._outside(await self._manager.suspend(vm_id))

    async def resume(self, vm_id: str) -> Vm:
        return self._outside(await self._manager.resume(vm_id))

    async def restrict(self, vm_id: str, egress: Egress) -> Vm:
        return self._outside(await self._manager.restrict(vm_id, egress))

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> Vm:
        return self._outside(await self._manager.screen(vm_id, identity, ingress))

    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity]) -> tuple[Vm, ...]:
        self._node.check_open()
        needed = self._manager.get(vm_id).spec.resources
        with self._node.promising({copy.vm_id: needed for copy in copies}):
            return tuple(self._outside(vm) for vm in await self._manager.fork(vm_id, copies))

    async def delete(self, vm_id: str) -> None:
        owner = self._owner(vm_id)
        if owner is not None and self._locks.is_held(vm_id):
            await self._manager.stop(vm_id, 0)  # a restart that is under way would give the guest all its grace
        async with self._locks.hold(vm_id):
            if self._owner(vm_id) == owner:
                await self._manager.delete(vm_id)
                self._ports.close(vm_id)

    async def scope_of(self, vm_id: str) -> Scope:
        return self._manager.get(vm_id).spec.scope

    async def get(self, vm_id: str) -> Vm:
        return self._outside(await self._manager.describe(vm_id))

    async def list_vms(self, chosen: VmFilter, reach: Reach, *, after: str, limit: int) -> Sequence[Vm]:
        matching = (
            vm for vm in self._all() if vm.spec.id > after and reach.covers(vm.spec.scope) and chosen.admits(vm)
        )
        return tuple([await self._measured(vm) for vm in islice(matching, limit)])

    async def _measured(self, vm: Vm) -> Vm:
        """As it was chosen, with what it takes of its host now; nothing of one that is gone since."""
        with suppress(NotFoundError):
            used = (await self._manager.describe(vm.spec.id)).status.usage
            return replace(vm, status=replace(vm.status, usage=used))
        return vm

    def watch(self, after: Position | None) -> AsyncGenerator[VmEvent]:
        return self._history.read(after)

    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        return await self._manager.exec(vm_id, spec)

    async def attach(self, vm_id: str, size: TerminalSize | None) -> ExecSession:
        return self._manager.attach(vm_id, size)

    async def copy_in(self, vm_id: str, target: CopyTarget) -> ExecSession:
        return await self._manager.copy_in(vm_id, target)

    async def copy_out(self, vm_id: str, path: str) -> ExecSession:
        return await self._manager.copy_out(vm_id, path)

    def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogLine]:
        return self._manager.logs(vm_id, follow=follow, tail=tail, since=since)

    # Starting

    def _start(self, vm: Vm) -> Vm:
        if vm.status.state in ENDED:
            raise ConflictError(
                "vm-ended",
                f"VM {vm.spec.id} has run and is {vm.status.state.value}",
                resolution="Restart it, or create another.",
            )
        if vm.status.state is VmState.PENDING:
            self._node.check_open()
        return self._manager.start(vm.spec.id)

    def _close_unused_ports(self, vm_id: str) -> None:
        if not any(vm.spec.id == vm_id and vm.status.state not in ENDED for vm in self._manager.list_vms()):
            self._ports.close(vm_id)

    def _owner(self, vm_id: str) -> Scope | None:
        """Whose VM has this id now; None: there is none."""
        with suppress(NotFoundError):
            return self._manager.get(vm_id).spec.scope
        return None

    def _check_macs(self, spec: VmSpec) -> None:
        taken = {
            network.actual_mac
            for vm in self._manager.list_vms()
            if vm.status.state not in ENDED
            for network in vm.spec.networks
        }
        for index, network in enumerate(spec.networks):
            if network.actual_mac in taken:
                raise InvalidSpecError(f"networks[{index}].mac", "another VM of this host has it")

    # Inside and outside

    def _inside(self, spec: VmSpec) -> VmSpec:
        """A tenant's specification as the manager gets it."""
        if spec.volumes:
            raise InvalidSpecError("volumes", "this node has no volumes", resolution="Leave them out.")
        image = self._catalogue.find(spec.scope, spec.image)
        networks = tuple(
            replace(
                network,
                id=network.id or f"nic{index}",
                network_id=f"{_scope_key(spec.scope)}-{network.network_id}",
                mac=network.mac or mac_of(f"{spec.id}/{network.id or index}"),
            )
            for index, network in enumerate(spec.networks)
        )
        return replace(spec, image=image.digest, networks=networks)

    def _numbered(self, spec: VmSpec) -> VmSpec:
        """With the number of each network: that of its VMs, which this engine knows also when they have ended, or one that
        no VM has. Nothing may come between this and the VM's creation."""
        known = {
            network.network_id: network.network_number
            for vm in self._manager.list_vms()
            for network in vm.spec.networks
            if network.network_number
        }
        networks = []
        for network in spec.networks:
            number = known.setdefault(network.network_id, max(known.values(), default=0) + 1)
            networks.append(replace(network, network_number=number))
        return replace(spec, networks=tuple(networks))

    def _outside(self, vm: Vm) -> Vm:
        """A VM as its tenant knows it. The same specification gives the same object, so that comparing is quick."""
        shown = self._shown.get(vm.spec.id)
        if shown is None or shown.inside is not vm.spec:
            networks = tuple(_own_name(network, vm.spec.scope) for network in vm.spec.networks)
            shown = self._shown[vm.spec.id] = _Shown(vm.spec, replace(vm.spec, networks=networks))
        return replace(vm, spec=shown.outside)

    def _all(self) -> tuple[Vm, ...]:
        present = self._manager.list_vms()
        for vm_id in self._shown.keys() - {vm.spec.id for vm in present}:
            del self._shown[vm_id]
        return tuple(self._outside(vm) for vm in present)


def _scope_key(scope: Scope) -> str:
    return vm_key(f"{scope.org}/{scope.project}")


def _own_name(network: NetworkSpec, scope: Scope) -> NetworkSpec:
    name = network.network_id.removeprefix(f"{_scope_key(scope)}-")
    return replace(network, network_id=name, network_number=0)
