"""The engine port without VMs: for tests and simulation, on any clock, with faults on demand.

A workload's behaviour is chosen by its command: `exit N` ends with that code as soon as it runs, `sleep` and everything
else runs until it is stopped. `boot_s` of virtual time pass between an order and its running.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError
from shellwego.core.nodes import Backend, NodeFacts
from shellwego.core.peers import PeerNode
from shellwego.core.volumes import VolumeView
from shellwego.drivers.engine.memory_volumes import MemoryVolumes
from shellwego.ports.clock import Clock
from shellwego.ports.engine import ExecChannel, ExecData, ExecDone, LogRecord, VmOrder, VmPhase, VmUsage, VmView
from shellwego.ports.streams import StreamKind, StreamRequest
from shellwego.wire.codec import decode, encode

MIB = 1024 * 1024
DISK_BYTES = 1 << 42
_WHOLE = b"whole"
"""Ends a memory that was sent."""


@dataclass(slots=True)
class _MemoryVm:
    order: VmOrder
    view: VmView
    life: asyncio.Task[None] | None = None
    log: list[LogRecord] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A memory on its way."""

    whose: tuple[str, str, str]
    """Organization, project and image."""
    host: tuple[tuple[str, str], ...]
    files: Mapping[str, bytes]


class MemoryExec:
    """`echo WORDS` writes them, `exit N` and `true` end, `cat` gives back what it is sent; there are no others."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16)

    async def send(self, data: bytes) -> None:
        await self._input.put(data)

    async def send_eof(self) -> None:
        await self._input.put(b"")

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, number: int) -> None:
        await self._input.put(b"")

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        match self._command:
            case ("echo", *words):
                yield ExecData(stream="stdout", data=" ".join(words).encode() + b"\n")
                yield ExecDone(code=0)
            case ("cat",):
                while data := await self._input.get():
                    yield ExecData(stream="stdout", data=data)
                yield ExecDone(code=0)
            case ("exit", code):
                yield ExecDone(code=int(code))
            case ("true",):
                yield ExecDone(code=0)
            case _:
                yield ExecData(stream="stderr", data=f"{self._command[0]} was not found in the image\n".encode())
                yield ExecDone(code=127)

    async def aclose(self) -> None:
        pass


class MemoryCopy:
    """What comes in is kept by its path as it is, and given out so again."""

    def __init__(self, files: dict[str, bytes], request: StreamRequest) -> None:
        self._files = files
        self._request = request
        self._received = b""
        self._ended = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self._received += data

    async def send_eof(self) -> None:
        self._ended.set()

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, number: int) -> None:
        pass

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        path = self._request.path
        if self._request.kind is StreamKind.COPY_IN:
            await self._ended.wait()
            self._files[path] = self._received
        else:
            yield ExecData(stream="stdout", data=self._files[path])
        yield ExecDone(code=0)

    async def aclose(self) -> None:
        pass


class MemoryAttachment:
    """The workload's log as it is written, until its end; it takes no input."""

    def __init__(self, engine: MemoryEngine, vm: _MemoryVm) -> None:
        self._engine = engine
        self._vm = vm

    async def send(self, data: bytes) -> None:
        pass

    async def send_eof(self) -> None:
        pass

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, number: int) -> None:
        await self._engine.stop(self._vm.view.vm_id, 0)

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        async for record in self._engine.logs(self._vm.view.vm_id, follow=True, tail=0, since=0.0):
            yield ExecData(stream=record.stream, data=f"{record.text}\n".encode())
        yield ExecDone(code=self._vm.view.exit_code or 0)

    async def aclose(self) -> None:
        pass


class MemoryEngine:
    """`ports.engine.Engine` and `VolumeEngine` in memory. Faults: `boots_fail_with`, `sleep_fails_with`, `die`
    (as a VMM killed), `disks.fails_with`."""

    def __init__(self, clock: Clock, *, boot_s: float = 0.2, name: str = "memory") -> None:
        self._clock = clock
        self._boot_s = boot_s
        self._name = name
        self._vms: dict[str, _MemoryVm] = {}
        self._wake = asyncio.Event()
        self._addresses = 1
        self.peers: tuple[PeerNode, ...] = ()
        self.boots_fail_with = ""
        """While set, each boot fails with this reason."""
        self.sleep_fails_with: ShellWeGoError | None = None
        """While set, each suspend and resume fails so."""
        self.disks = MemoryVolumes(DISK_BYTES, self._holders)
        self.snapshot_host: tuple[tuple[str, str], ...] = (("program", "memory"),)
        """As `core.nodes.Backend` has it: memories are taken from engines where it is the same."""

    async def connect(self, peers: Sequence[PeerNode]) -> tuple[PeerNode, ...]:
        self.peers = tuple(peers)
        return ()

    async def start(self) -> None:
        self._notify()

    async def facts(self) -> NodeFacts:
        backend = Backend(name="memory", status="ready", acceleration="none", isolation="none", max_vcpus=64)
        backend = replace(backend, max_memory_bytes=1 << 40, suspend=True, volumes=True)
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
        for mount in order.workload.mounts:
            self.disks.take(mount.volume_id, order.vm_id)
        view = VmView(
            vm_id=order.vm_id,
            instance_id=order.instance_id,
            attempt=order.attempt,
            phase=VmPhase.PREPARING,
            detail="image",
        )
        vm = _MemoryVm(order, view)
        self._vms[order.vm_id] = vm
        vm.life = asyncio.create_task(self._live(vm))
        self._notify()

    async def _live(self, vm: _MemoryVm) -> None:
        await self._clock.sleep(self._boot_s)
        if self.boots_fail_with:
            self._end(vm, reason=self.boots_fail_with, reason_code="boot-failed")
            return
        self._set(vm, phase=VmPhase.RUNNING, address=self._address(), detail="")
        vm.log.append(LogRecord(time=self._clock.now(), stream="stdout", text="hello"))
        match vm.order.workload.command:
            case ("exit", code):
                await self._clock.sleep(0.01)
                reason = f"the workload ended with exit code {code}"
                self._end(vm, exit_code=int(code), reason=reason, reason_code="exited")
            case _:
                pass

    def _address(self) -> str:
        self._addresses += 1
        return f"10.64.{self._addresses // 256 % 256}.{self._addresses % 256}"

    async def stop(self, vm_id: str, grace_s: float) -> None:
        vm = self._find(vm_id)
        if vm.view.phase in (VmPhase.ENDED, VmPhase.STOPPING):
            return
        if vm.life is not None:
            vm.life.cancel()
        self._set(vm, phase=VmPhase.STOPPING, asked=True, detail="")
        vm.life = asyncio.create_task(self._stop(vm))

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
        self._set(vm, phase=between)
        await self._clock.sleep(0.01)
        if vm.view.phase is between:  # it may have been stopped, or have died, meanwhile
            self._set(vm, phase=before if self.sleep_fails_with else after, address=vm.view.address or self._address())
        if self.sleep_fails_with:
            raise self.sleep_fails_with

    async def export_memory(self, vm_id: str) -> AsyncGenerator[bytes]:
        vm = self._find(vm_id)
        if vm.view.phase is not VmPhase.ASLEEP:
            raise ConflictError(f"vm-{vm.view.phase.value}", f"VM {vm_id} is {vm.view.phase.value}")
        work = vm.order.workload
        whose = (work.organization_id, work.project_id, work.image_digest)
        sent = encode(_Sent(whose=whose, host=self.snapshot_host, files=vm.files))
        for at in range(0, len(sent), 64):
            yield sent[at : at + 64]
            await self._clock.sleep(0.001)
            if vm.view.phase is not VmPhase.ASLEEP or self._vms.get(vm_id) is not vm:
                raise ConflictError("vm-woken", f"VM {vm_id} does not sleep any more")
        yield _WHOLE

    async def import_memory(self, order: VmOrder, stream: AsyncIterable[bytes]) -> None:
        received = b"".join([chunk async for chunk in stream])
        if order.vm_id in self._vms:
            raise ConflictError("vm-exists", f"VM {order.vm_id} exists already")
        try:
            sent = decode(_Sent, received.removesuffix(_WHOLE))
        except ValueError as error:
            raise InvalidError("snapshot-damaged", f"the memory that was sent is damaged: {error}") from None
        if not received.endswith(_WHOLE):
            raise InvalidError("snapshot-damaged", "the memory that was sent breaks off")
        work = order.workload
        whose = (work.organization_id, work.project_id, work.image_digest)
        if (sent.whose, sent.host) != (whose, self.snapshot_host):
            raise ConflictError("snapshot-foreign", "the memory that was sent is not for this VM and host")
        view = VmView(vm_id=order.vm_id, instance_id=order.instance_id, attempt=order.attempt, phase=VmPhase.ASLEEP)
        self._vms[order.vm_id] = _MemoryVm(order, view, files=dict(sent.files))
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
            return MemoryAttachment(self, vm)
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

    async def create_volume(self, volume_id: str, size_bytes: int) -> None:
        self.disks.create(volume_id, size_bytes)
        self._notify()

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        self.disks.clone(snapshot_id, volume_id, size_bytes)
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

    async def delete_volume(self, volume_id: str) -> None:
        self.disks.delete(volume_id)
        self._notify()

    async def delete_snapshot(self, snapshot_id: str) -> None:
        self.disks.delete_snapshot(snapshot_id)
        self._notify()

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

    def _find(self, vm_id: str) -> _MemoryVm:
        if vm_id not in self._vms:
            raise NotFoundError("vm-not-found", f"there is no VM {vm_id}")
        return self._vms[vm_id]

    def _set(self, vm: _MemoryVm, **changes: object) -> None:
        vm.view = replace(vm.view, **changes)  # type: ignore[arg-type]  # names and types are the view's own
        self._notify()

    def _end(self, vm: _MemoryVm, **changes: object) -> None:
        tail = tuple(record.text for record in vm.log[-50:])
        self._set(vm, phase=VmPhase.ENDED, address="", detail="", log_tail=tail, **changes)

    def _notify(self) -> None:
        self._wake.set()
