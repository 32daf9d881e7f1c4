"""The engine port without VMs: for tests and simulation, on any clock, with faults on demand.

A workload's behaviour is chosen by its command: `exit N` ends with that code as soon as it runs, `sleep` and everything
else runs until it is stopped. `boot_s` of virtual time pass between an order and its running.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network

from shellwego.core.addresses import private_address
from shellwego.core.destinations import Destination
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError
from shellwego.core.names import NetworkNames
from shellwego.core.nodes import Backend, NodeFacts
from shellwego.core.openings import Ingress
from shellwego.core.peers import PeerNode
from shellwego.core.publishing import OpenPort
from shellwego.core.sensitive import Sensitive
from shellwego.core.subnets import PREFIX
from shellwego.core.volumes import VolumeView
from shellwego.drivers.engine.memory_parcels import WHOLE, packed, unpacked
from shellwego.drivers.engine.memory_sessions import MemoryAttachment, MemoryCopy, MemoryExec
from shellwego.drivers.engine.memory_volumes import BLOCK, MemorySource, MemoryVolumes
from shellwego.ports.clock import Clock
from shellwego.ports.engine import ExecChannel, LogRecord, NetworkUsage, VmOrder, VmPhase, VmUsage, VmView
from shellwego.ports.streams import StreamKind, StreamRequest

MIB = 1024 * 1024
DISK_BYTES = 1 << 42
_FENCED = "the time for which it could have its volumes was over"


@dataclass(slots=True)
class _MemoryVm:
    order: VmOrder
    view: VmView
    life: asyncio.Task[None] | None = None
    log: list[LogRecord] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    ends_at: float = math.inf
    """When the time is over for which it has its volumes."""


class MemoryEngine:
    """`ports.engine.Engine`, `VolumeEngine` and `FencingEngine` in memory. Faults: `boots_fail_with`, `lacks`,
    `sleep_fails_with`, `die` (as a VMM killed), `disks.fails_with`."""

    def __init__(self, clock: Clock, *, boot_s: float = 0.2, name: str = "memory") -> None:
        self._clock = clock
        self._boot_s = boot_s
        self._name = name
        self._vms: dict[str, _MemoryVm] = {}
        self._wake = asyncio.Event()
        self._addresses = 1
        self.peers: tuple[PeerNode, ...] = ()
        self.key_step = 0
        self.names: dict[str, NetworkNames] = {}
        """By network."""
        self.published: tuple[OpenPort, ...] = ()
        self.known: dict[str, tuple[str, ...]] = {}
        """VMs of other nodes by the ids of their apps."""
        self.boots_fail_with = ""
        """While set, each boot fails with this reason."""
        self.lacks = ""
        """While set, no VM begins: this, which it needs, does not answer."""
        self.sleep_fails_with: ShellWeGoError | None = None
        """While set, each suspend and resume fails so."""
        self.disks = MemoryVolumes(DISK_BYTES, self._holders)
        self._until: Mapping[str, float] = {}
        """By volume: when the time is over for which VMs may have it."""
        self._warden: asyncio.Task[None] | None = None
        self.passed: dict[str, NetworkUsage] = {}
        """What has passed whose interface, by VM; set it."""
        self.counts_fail_with: ShellWeGoError | None = None
        """While set, what has passed cannot be read."""
        self.snapshot_host: tuple[tuple[str, str], ...] = (("program", "memory"),)
        """As `core.nodes.Backend` has it: memories are taken from engines where it is the same."""

    async def connect(self, peers: Sequence[PeerNode], key_step: int = 0) -> tuple[PeerNode, ...]:
        self.peers, self.key_step = tuple(peers), key_step
        return ()

    async def name(self, networks: Sequence[NetworkNames]) -> None:
        self.names = {each.network_id: each for each in networks}

    async def publish(self, ports: Sequence[OpenPort]) -> None:
        self.published = tuple(ports)

    async def start(self) -> None:
        self.disks.lock()
        self._until = {}
        self._notify()

    async def facts(self) -> NodeFacts:
        backend = Backend(name="memory", status="ready", acceleration="none", isolation="none", max_vcpus=64)
        backend = replace(backend, max_memory_bytes=1 << 40, suspend=True, volumes=True, encryption=True, fences=True)
        backend = replace(backend, snapshot_host=self.snapshot_host)
        return NodeFacts(
            hostname=self._name,
            version="memory",
            cpu_milli=64_000,
            memory_bytes=256 * 1024 * MIB,
            disk_bytes=DISK_BYTES,
            backends=(backend,),
            confinement="none",
        )

    def environment(self, vm_id: str) -> dict[str, str]:
        """What the guest of a VM would see."""
        order = self._vms[vm_id].order
        return {**order.workload.env, **{name: value.reveal_text() for name, value in order.secrets.items()}}

    async def run(self, order: VmOrder) -> None:
        if order.vm_id in self._vms:
            return
        ends_at = self._ends_at(order)
        for mount in order.workload.mounts:
            self.disks.take(mount.volume_id, order.vm_id)
        view = VmView(
            vm_id=order.vm_id,
            instance_id=order.instance_id,
            attempt=order.attempt,
            phase=VmPhase.PREPARING,
            detail="image",
            egress=order.workload.egress,
            identity=order.workload.app_id,
            ingress=order.workload.ingress,
            organization_id=order.workload.organization_id,
        )
        vm = _MemoryVm(order, view, ends_at=ends_at)
        self._vms[order.vm_id] = vm
        vm.life = asyncio.create_task(self._live(vm))
        self._notify()

    async def _live(self, vm: _MemoryVm) -> None:
        await self._clock.sleep(self._boot_s)
        if self.lacks:
            self._end(vm, reason=self.lacks, reason_code="uplink-unavailable", unavailable=True)
            return
        if self.boots_fail_with:
            self._end(vm, reason=self.boots_fail_with, reason_code="boot-failed")
            return
        self._set(vm, phase=VmPhase.RUNNING, detail="", **self._addresses_for(vm.order))
        vm.log.append(LogRecord(time=self._clock.now(), stream="stdout", text="hello"))
        match vm.order.workload.command:
            case ("exit", code):
                await self._clock.sleep(0.01)
                reason = f"the workload ended with exit code {code}"
                self._end(vm, exit_code=int(code), reason=reason, reason_code="exited")
            case _:
                pass

    def _addresses_for(self, order: VmOrder) -> dict[str, str]:
        self._addresses += 1
        ipv4, work = f"10.64.{self._addresses // 256 % 256}.{self._addresses % 256}", order.workload
        if not work.private_prefix or not work.network_number:
            return {"address": ipv4}
        subnet = str(IPv4Network((ipv4, PREFIX), strict=False))
        return {
            "address": ipv4,
            "private_address": private_address(work.private_prefix, subnet, work.network_number, ipv4),
        }

    async def stop(self, vm_id: str, grace_s: float) -> None:
        vm = self._find(vm_id)
        if vm.view.phase in (VmPhase.ENDED, VmPhase.STOPPING):
            return
        if vm.view.phase is VmPhase.ASLEEP:
            self._end(vm, asked=True, reason="stopped while it was suspended", reason_code="stopped")
            return
        if vm.life is not None:
            vm.life.cancel()
        self._set(vm, phase=VmPhase.STOPPING, asked=True, detail="")
        vm.life = asyncio.create_task(self._stop(vm))

    async def restrict(self, vm_id: str, egress: Sequence[Destination] | None) -> None:
        self._set(self._find(vm_id), egress=None if egress is None else tuple(egress))

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> None:
        self._set(self._find(vm_id), identity=identity, ingress=ingress)

    async def recognize(self, known: Mapping[str, Sequence[str]]) -> None:
        self.known = {app_id: tuple(addresses) for app_id, addresses in known.items()}

    async def _stop(self, vm: _MemoryVm) -> None:
        await self._clock.sleep(0.01)
        self._end(vm, exit_code=143, reason="stopped as asked", reason_code="stopped")

    async def suspend(self, vm_id: str) -> None:
        await self._move(vm_id, VmPhase.RUNNING, VmPhase.SUSPENDING, VmPhase.ASLEEP)

    async def resume(self, vm_id: str) -> None:
        await self._move(vm_id, VmPhase.ASLEEP, VmPhase.RESUMING, VmPhase.RUNNING)

    async def _move(self, vm_id: str, before: VmPhase, between: VmPhase, after: VmPhase) -> None:
        vm = self._find(vm_id)
        if vm.view.phase is after:
            return
        if vm.view.phase is not before:
            raise ConflictError(f"vm-{vm.view.phase.value}", f"VM {vm_id} is {vm.view.phase.value}")
        if before is VmPhase.ASLEEP:
            vm.ends_at = self._ends_at(vm.order)
        self._set(vm, phase=between)
        await self._clock.sleep(0.01)
        if vm.view.phase is between:  # it may have been stopped, or have died, meanwhile
            addresses = {} if vm.view.address else self._addresses_for(vm.order)
            self._set(vm, phase=before if self.sleep_fails_with else after, **addresses)
        if self.sleep_fails_with:
            raise self.sleep_fails_with

    async def export_memory(self, vm_id: str) -> AsyncGenerator[bytes]:
        vm = self._find(vm_id)
        if vm.view.phase is not VmPhase.ASLEEP:
            raise ConflictError(f"vm-{vm.view.phase.value}", f"VM {vm_id} is {vm.view.phase.value}")
        for part in packed(vm.order.workload, self.snapshot_host, vm.files):
            yield part
            await self._clock.sleep(0.001)
            if vm.view.phase is not VmPhase.ASLEEP or self._vms.get(vm_id) is not vm:
                raise ConflictError("vm-woken", f"VM {vm_id} does not sleep any more")
        yield WHOLE

    async def import_memory(self, order: VmOrder, stream: AsyncIterable[bytes]) -> None:
        received = b"".join([chunk async for chunk in stream])
        if order.vm_id in self._vms:
            raise ConflictError("vm-exists", f"VM {order.vm_id} exists already")
        work = order.workload
        files = unpacked(received, work, self.snapshot_host)
        view = VmView(vm_id=order.vm_id, instance_id=order.instance_id, attempt=order.attempt, phase=VmPhase.ASLEEP)
        view = replace(view, egress=work.egress, identity=work.app_id, ingress=work.ingress)
        view = replace(view, organization_id=work.organization_id)
        self._vms[order.vm_id] = _MemoryVm(order, view, files=files)
        self._notify()

    async def delete(self, vm_id: str) -> None:
        vm = self._vms.pop(vm_id, None)
        if vm is not None and vm.life is not None:
            vm.life.cancel()
        self._notify()

    def die(self, vm_id: str) -> None:
        """End a VM as if somebody had killed its VMM."""
        vm = self._find(vm_id)
        if vm.life is not None:
            vm.life.cancel()
        self._end(vm, reason="the VM's process ended unexpectedly", reason_code="vmm-died")

    async def observe(self) -> tuple[VmView, ...]:
        self._wake.clear()
        return tuple(vm.view for vm in self._vms.values())

    async def usage(self, vm_id: str) -> VmUsage:
        vm = self._find(vm_id)
        runs = vm.view.phase is VmPhase.RUNNING
        return VmUsage(memory_bytes=vm.order.workload.memory_bytes if runs else 0, disk_bytes=4096)

    async def traffic(self) -> Mapping[str, NetworkUsage]:
        if self.counts_fail_with is not None:
            raise self.counts_fail_with
        runs = (vm_id for vm_id, vm in self._vms.items() if vm.view.phase is VmPhase.RUNNING)
        return {vm_id: self.passed.get(vm_id, NetworkUsage()) for vm_id in runs}

    async def changed(self) -> None:
        await self._wake.wait()

    async def exec(self, vm_id: str, request: StreamRequest) -> MemoryExec:
        if self._find(vm_id).view.phase is not VmPhase.RUNNING:
            raise ConflictError("vm-not-running", f"VM {vm_id} does not run")
        return MemoryExec(request.command)

    async def join(self, vm_id: str, request: StreamRequest) -> ExecChannel:
        vm = self._find(vm_id)
        if request.kind is StreamKind.ATTACH:
            if vm.view.phase is VmPhase.ENDED:
                raise ConflictError("vm-ended", f"VM {vm_id} has ended")
            return MemoryAttachment(
                self.logs(vm_id, follow=True, tail=0, since=0.0),
                stop=lambda: self.stop(vm_id, 0),
                code=lambda: vm.view.exit_code or 0,
            )
        if vm.view.phase is not VmPhase.RUNNING:
            raise ConflictError("vm-not-running", f"VM {vm_id} does not run")
        if not request.path.startswith("/"):
            raise InvalidError("invalid-spec", f"{request.path[:80]!r} is no absolute path")
        if request.kind is StreamKind.COPY_OUT and request.path not in vm.files:
            raise ConflictError("exec-no-such-path", f"{request.path}: there is no such file in the VM")
        return MemoryCopy(vm.files, request)

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        vm = self._find(vm_id)
        sent = max(len(vm.log) - tail, 0)
        while True:
            while sent < len(vm.log):
                yield vm.log[sent]
                sent += 1
            if not follow or vm.view.phase is VmPhase.ENDED:
                return
            await self._clock.sleep(0.05)

    async def volumes(self) -> tuple[VolumeView, ...]:
        return self.disks.views()

    async def create_volume(self, volume_id: str, size_bytes: int, key: Sensitive | None = None) -> None:
        self.disks.create(volume_id, size_bytes, key=key)
        self._notify()

    async def unlock_volume(self, volume_id: str, key: Sensitive) -> None:
        self.disks.unlock(volume_id, key)
        self._notify()

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        self.disks.clone(snapshot_id, volume_id, size_bytes)
        self._notify()

    @asynccontextmanager
    async def read_snapshot(self, snapshot_id: str) -> AsyncGenerator[MemorySource]:
        yield self.disks.source(snapshot_id)

    async def fill_volume(
        self,
        volume_id: str,
        stored_bytes: int,
        content: AsyncIterable[tuple[int, bytes]],
        key: Sensitive | None = None,
    ) -> None:
        if volume_id not in self.disks.kept:
            held = bytearray()
            async for at, data in content:
                held.extend(bytes(max(at - len(held), 0)))
                held[at : at + len(data)] = data
            self.disks.fill(volume_id, stored_bytes, bytes(held), key)
        self._notify()

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        self.disks.resize(volume_id, size_bytes)
        self._notify()

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        self.disks.snapshot(volume_id, snapshot_id)
        self._notify()

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        self.disks.restore(volume_id, snapshot_id)
        self._notify()

    async def send_snapshot(self, snapshot_id: str, since: str = "") -> AsyncGenerator[bytes]:
        sent = self.disks.send(snapshot_id, since)
        for start in range(0, len(sent), BLOCK):
            yield sent[start : start + BLOCK]

    async def receive_snapshot(
        self, volume_id: str, snapshot_id: str, stream: AsyncIterable[bytes], since: str = ""
    ) -> str:
        known = self.disks.kept.get(volume_id)
        sent = b"" if known and snapshot_id in known.snapshots else b"".join([part async for part in stream])
        digest = self.disks.receive(volume_id, snapshot_id, sent, since)
        self._notify()
        return digest

    async def delete_volume(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        self.disks.delete(volume_id, with_snapshots=with_snapshots)
        self._notify()

    async def delete_snapshot(self, snapshot_id: str) -> None:
        self.disks.delete_snapshot(snapshot_id)
        self._notify()

    async def fence_volumes(self, until: Mapping[str, float]) -> None:
        self._until = dict(until)
        now = self._clock.monotonic()
        for vm in self._vms.values():
            if vm.ends_at > now:
                vm.ends_at = self._moment(vm.order)
        if self._warden is None or self._warden.done():
            self._warden = asyncio.create_task(self._guard(), name="warden")

    async def _guard(self) -> None:
        """Kill what is over its time. Of an agent that stands still, or is gone, it needs nothing."""
        while True:
            now = self._clock.monotonic()
            running = [vm for vm in self._vms.values() if vm.view.phase not in (VmPhase.ENDED, VmPhase.ASLEEP)]
            for vm in running:
                if vm.ends_at <= now:
                    if vm.life is not None:
                        vm.life.cancel()
                    self._end(vm, reason=_FENCED, reason_code="fenced", asked=True)
            coming = [moment for moment in (*(vm.ends_at for vm in running), *self._until.values()) if moment > now]
            if min(coming, default=math.inf) == math.inf:
                return
            await self._clock.sleep(min(coming) - now)

    def _moment(self, order: VmOrder) -> float:
        return min((self._until.get(mount.volume_id, math.inf) for mount in order.workload.mounts), default=math.inf)

    def _ends_at(self, order: VmOrder) -> float:
        """Of a VM that is about to run."""
        moment = self._moment(order)
        if moment <= self._clock.monotonic():
            raise ConflictError("volume-fenced", f"the time for which {order.vm_id} may have its volumes is over")
        return moment

    def _holders(self) -> Iterator[tuple[str, str]]:
        for vm_id, vm in self._vms.items():
            if vm.view.phase is not VmPhase.ENDED:
                for mount in vm.order.workload.mounts:
                    yield mount.volume_id, vm_id

    async def close(self, *, keep_vms: bool) -> None:
        for vm in self._vms.values():
            if vm.life is not None:
                vm.life.cancel()
        if not keep_vms:
            self._vms.clear()
            if self._warden is not None:
                self._warden.cancel()

    def _find(self, vm_id: str) -> _MemoryVm:
        if vm_id not in self._vms:
            raise NotFoundError("vm-not-found", f"there is no VM {vm_id}")
        return self._vms[vm_id]

    def _set(self, vm: _MemoryVm, **changes: object) -> None:
        vm.view = replace(vm.view, **changes)  # type: ignore[arg-type]  # names and types are the view's own
        self._notify()

    def _end(self, vm: _MemoryVm, **changes: object) -> None:
        tail = tuple(record.text for record in vm.log[-50:])
        self._set(vm, phase=VmPhase.ENDED, address="", private_address="", detail="", log_tail=tail, **changes)

    def _notify(self) -> None:
        self._wake.set()
