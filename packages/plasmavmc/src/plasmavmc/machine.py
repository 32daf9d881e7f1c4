"""One VM's life: booted by `booting`, then supervised to its end.

Theory. `Machine` runs one task from PENDING to a terminal state. Once the workload runs, two things can happen: the guest
says that it ended (then the VMM follows by itself), or the VMM ends without a word (killed, or the guest's kernel
panicked). Both arrive at `_finish`, which takes the host's resources away and writes the last status; the writable layer
stays until `delete`, the log for a day. What the guest says is a `guest.listener`'s to take.

An end that was asked for is STOPPED with reason code `stopped`; one that was not is STOPPED with `exited` (the workload
ended by itself, with its exit code) or FAILED (it could not start, or the VMM died under it).

A VM's life goes on whatever its host refuses. What it has become is true here at once, and written as soon as the disk
takes it (`Records.keep`). A VMM may outlive SIGKILL for as long as a disk hangs: its VM has not ended then, for it may still
have its volumes; it is seen to be `stopping` with the reason, and is ended again and again. Who asked for its end is told,
and nobody else waits for it.

Trap: RUNNING is told only when the boot's undo stack is gone, so that whoever stops or leaves a running VM never meets a
boot that would still undo it. Trap: what is cancelled is cancelled once; a second time would cut short how it is undone.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace

import structlog

from plasmavmc.booting import Boot, Booted
from plasmavmc.errors import (
    ConflictError,
    GuestError,
    HostError,
    ImageError,
    InvalidSpecError,
    NotFoundError,
    PlasmaError,
    UnavailableError,
    WorkloadError,
)
from plasmavmc.guest.api import NOT_EXECUTED, ExecExit, ExecSession, GuestChannel, GuestEvent, GuestExited
from plasmavmc.guest.boot import BootAssets
from plasmavmc.guest.listener import Listener
from plasmavmc.host.operations import UNKILLABLE
from plasmavmc.hypervisor.backend import HypervisorBackend, VmmExit
from plasmavmc.parts import EngineParts
from plasmavmc.policy import Egress, Ingress
from plasmavmc.records import VmRecord
from plasmavmc.states import ENDED, MOVES, VmState, advance
from plasmavmc.stillness import Stillness
from plasmavmc.stopping import EXIT_GRACE_S, Stop, stop_signal
from plasmavmc.types import Lease, NetworkSpec, NetworkUsage, TerminalSize, Vm, VmHandle, VmSpec, VmUsage, vm_key

RETRY_S = 5.0
"""From an attempt to end a VMM that failed to the next."""
TAIL_LINES = 50

log = structlog.get_logger("plasmavmc.machine")


class Machine:
    """A VM and the task that lives its life. The manager holds one per VM id."""

    def __init__(self, record: VmRecord, parts: EngineParts, changed: Callable[[], None]) -> None:
        self.record = record
        self.key = vm_key(record.spec.id)
        self._parts = parts
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._booting = False
        self._spawned_at = 0.0
        self._listener = Listener(parts.logs, self.key, record.spec.stdio)
        self._ended = asyncio.Event()
        self._born = asyncio.Event()
        self._stop: Stop | None = None
        self._stopping: asyncio.Task[None] | None = None
        """Carries the stop out."""
        self._doomed = asyncio.Event()
        """Its time is over: its VMM is to end."""
        self._hung = asyncio.Event()
        self._trouble: PlasmaError | None = None
        """Why its VMM does not end, while it is `_hung`."""
        self._changing = asyncio.Lock()
        """Of what it may: who takes his change back must not take another's with it, nor write down what is deleted."""
        self._deleted = False
        self.stillness = Stillness(record.spec.id)
        self._left: VmHandle | None = None
        """An ended VMM of which something is there still: the backend makes no other for this VM before that is gone."""
        if record.status.state in ENDED:
            self._ended.set()

    @property
    def spec(self) -> VmSpec:
        return self.record.spec

    @property
    def state(self) -> VmState:
        return self.record.status.state

    @property
    def begun(self) -> bool:
        """Its life has begun."""
        return self._task is not None

    @property
    def channel(self) -> GuestChannel | None:
        """The way to its guest, while the workload runs."""
        return self._listener.channel if self.state is VmState.RUNNING else None

    def runs_with(self, channel: GuestChannel) -> bool:
        """This is the way to its guest still, and it is not to end."""
        return self._listener.channel is channel and self.state is not VmState.STOPPING

    def held(self, network: NetworkSpec) -> NetworkSpec:
        now = self.spec.networks[0] if self.spec.networks else network
        return replace(network, egress=now.egress, identity=now.identity, ingress=now.ingress)

    def attach(self, size: TerminalSize | None) -> ExecSession:
        """Join the workload's own stdin and output, also before it runs.

        Raises:
            ConflictError: `vm-ended`.
        """
        if self.state in ENDED:
            raise ConflictError(
                "vm-ended",
                f"VM {self.spec.id} has ended and is {self.state.value}",
                resolution="Its output is in its logs.",
            )
        return self._listener.attach(size)

    @property
    def terminal_size(self) -> TerminalSize:
        return self._listener.terminal_size

    def view(self) -> Vm:
        """The VM as it is now."""
        return Vm(self.record.spec, self.record.status, self.record.handle)

    async def usage(self) -> VmUsage:
        """What it takes of its host now."""
        handle, used = self.record.handle, VmUsage()
        if handle is not None and self.state not in ENDED:
            with suppress(PlasmaError):  # suspended, so that no VMM holds it; or its backend cannot be used any more
                used = await self._backend(handle).usage(handle)
        passed: Mapping[str, NetworkUsage] = {}
        with suppress(PlasmaError):  # the helper has ended: so does the engine
            passed = await self._parts.network.usage([self.key])
        disk_bytes = await self._parts.storage.used_bytes(self.key)
        return replace(used, disk_bytes=disk_bytes, network=passed.get(self.key))

    # Orders

    def start(self) -> None:
        """Begin its life."""
        self._begin(Boot(self.spec, self.key, self._parts, self).run)

    def _begin(self, birth: Callable[[], Awaitable[Booted]]) -> None:
        self._booting = True
        self._task = asyncio.create_task(self._run(birth), name=f"vm {self.spec.id}")

    async def restrict(self, egress: Egress) -> None:
        """Change what it may open connections to. In force first: where that fails, or cannot be written down, it is as it
        was."""
        hold = self._parts.network.restrict
        await self._change(lambda now: replace(now, egress=egress), lambda to: hold(self.key, to.egress))

    async def screen(self, identity: str, ingress: Ingress) -> None:
        """Change what it is known by, and what may be opened to it; as `restrict`."""
        hold = self._parts.network.screen
        await self._change(
            lambda now: replace(now, identity=identity, ingress=ingress),
            lambda to: hold(self.key, to.identity, to.ingress),
        )

    async def _change(
        self, change: Callable[[NetworkSpec], NetworkSpec], hold: Callable[[NetworkSpec], Awaitable[None]]
    ) -> None:
        async with self._changing:
            if self._deleted:
                raise NotFoundError("vm-not-found", f"VM {self.spec.id} was deleted meanwhile")
            if not self.spec.networks:
                return
            before, network = self.spec, change(self.spec.networks[0])
            await hold(network)
            self.record = replace(self.record, spec=replace(before, networks=(network,)))
            try:
                await self._parts.records.store(self.record)
            except PlasmaError:
                self.record = replace(self.record, spec=before)
                self._parts.records.keep(self.record)
                try:
                    await hold(before.networks[0])
                except PlasmaError as error:
                    log.warning("vm.held_to_unwritten", vm=self.spec.id, error=str(error))
                raise
        self._changed()

    async def stop(self, grace_s: float) -> None:
        """End the workload gracefully, then the VM; returns when it has ended. Idempotent: of several orders the nearest end
        counts. Who gives up waiting does not take the order back.

        Raises:
            PlasmaError: why its VMM does not end. That is tried again, and the VM ends as soon as it does.
        """
        if self._ended.is_set():
            return
        self.record = replace(self.record, asked=True)
        if self._task is None or self.state is VmState.PENDING:
            if self._task is not None:
                self._task.cancel()  # it has not come to its first step, and never will
            self._settle(VmState.STOPPED, "stopped", "stopped before it was started")
        elif self._booting:
            if self.state is not VmState.STOPPING:
                self._move(VmState.STOPPING)
                self._task.cancel()
        else:
            if VmState.STOPPING in MOVES[self.state]:  # not where its VMM hangs amid a suspend or resume
                self._move(VmState.STOPPING)
            self._begin_stop(grace_s)
        while not self._ended.is_set():
            await self._or_hangs(self._ended.wait())

    def _begin_stop(self, grace_s: float) -> None:
        if self._stop is not None:
            self._stop.hurry(grace_s)
            return
        self._stop = Stop(grace_s)
        self._stopping = asyncio.create_task(self._carry_out(self._stop), name=f"stop {self.spec.id}")

    async def _carry_out(self, stop: Stop) -> None:
        channel = self._listener.channel
        if channel is not None:
            try:
                await self.stillness.break_off()
                await stop.carry_out(channel, stop_signal(self.spec, self._parts.images), self._ended)
            except Exception:
                log.exception("vm.stop_broke", vm=self.spec.id)
        self._doomed.set()

    async def _or_hangs(self, over: Coroutine[None, None, object]) -> None:
        """Return when it is over.

        Raises:
            PlasmaError: the VMM of this VM does not end, so it may never be.
        """
        waiting = [asyncio.ensure_future(over), asyncio.ensure_future(self._hung.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if self._trouble is not None and not waiting[0].done():
            raise self._trouble

    # After a restart of the engine

    async def adopt(self) -> None:
        """Take over a VM that lived through a restart of the engine, or mark it ended where it did not. A stop that was cut
        short begins anew, with its whole grace: nobody knows what its guest has heard of it."""
        handle = self.record.handle
        if handle is None or self.state not in (VmState.RUNNING, VmState.STOPPING):
            await self._doom(VmState.FAILED, "engine-restarted", "the engine was restarted while this VM was starting")
            return
        channel = await self._recovered(handle)
        if channel is None:
            return
        self._listener.opened(channel)
        await self._keep_its_own()
        self._task = asyncio.create_task(self._watch_over(handle), name=f"vm {self.spec.id}")
        if self.state is VmState.STOPPING:
            self._begin_stop(self.spec.stop_grace_s)
            with suppress(PlasmaError):  # it ends all the same
                await self._parts.network.retire(self.key)

    async def disown(self, error: Exception) -> None:
        """End it: it cannot be taken over."""
        code = error.code if isinstance(error, PlasmaError) else "engine-defect"
        told = str(error) if isinstance(error, PlasmaError) else f"internal error: {type(error).__name__}"
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._listener.aclose()
        await self._doom(VmState.FAILED, code, f"it cannot be taken over after a restart of the engine: {told}")

    async def _recovered(self, handle: VmHandle) -> GuestChannel | None:
        """The way to the guest of a VM that lives; None where it does not any more, and is marked so."""
        try:
            channel = await self._backend(handle).recover(handle)
        except PlasmaError as error:
            words = f"it did not answer after a restart of the engine: {error}"
            await self._doom(VmState.FAILED, error.code, words)
            return None
        if channel is None:
            await self._doom(VmState.FAILED, "vmm-died", "the VMM ended while the engine was away")
        return channel

    async def _doom(self, state: VmState, code: str, reason: str) -> None:
        """End what cannot be adopted. A VMM that does not end at once is left to a task: the engine does not wait for it."""
        if self.record.asked and VmState.STOPPED in MOVES[self.state]:
            state, code = VmState.STOPPED, "stopped"
        handle = self.record.handle
        if handle is not None:
            try:
                await self._backend(handle).stop_vm(handle)
            except (PlasmaError, OSError) as error:
                self._hangs(error)
                with suppress(PlasmaError):  # what it has is not anybody else's while it is there
                    await self._keep_its_own()
                self._task = asyncio.create_task(self._end(handle, state, code, reason), name=f"end {self.spec.id}")
                return
        await self._finish(state, code, reason)

    async def _keep_its_own(self) -> None:
        """What an adopted VM has is not anybody else's.

        Raises:
            ConflictError: it is another's already.
        """
        if self.record.ipv4 is not None:
            await self._parts.network.adopt(self.key, self.spec.networks[0], self.record.ipv4)
        self._hold()

    # Letting go

    async def let_go(self) -> None:
        """Stop supervising without touching the VM: the engine ends, the VM stays. One that boots is stopped."""
        if self._booting:
            with suppress(PlasmaError):  # it does not end, and is the next engine's
                await self.stop(0)
        if self._task is None or self._ended.is_set():
            return
        for task in (self._stopping, self._task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._listener.log.flush()

    async def delete(self) -> None:
        """Remove what is left of an ended VM; its log stays until its day is over.

        Raises:
            PlasmaError: something cannot be removed, and the VM is there still.
        """
        async with self._changing:
            await self._forget_left()
            await self._parts.storage.delete(self.key)
            self._parts.records.delete(self.spec.id)
            self._deleted = True

    # Boot, and what it reports

    async def _run(self, birth: Callable[[], Awaitable[Booted]]) -> None:
        self._move(VmState.PREPARING, "image")
        try:
            booted = await birth()
        except asyncio.CancelledError:
            await self._unborn(VmState.STOPPED, "stopped", "stopped while it was starting")
        except PlasmaError as error:
            if isinstance(error, UnavailableError) and self.state is VmState.PREPARING:
                self.record = replace(self.record, status=replace(self.record.status, unavailable=True))
            permanent = isinstance(error, (ImageError, InvalidSpecError, WorkloadError))
            exit_code = NOT_EXECUTED.get(error.code) if isinstance(error, WorkloadError) else None
            await self._unborn(VmState.FAILED, error.code, str(error), exit_code=exit_code, permanent=permanent)
        except Exception as error:
            log.exception("vm.boot_broke", vm=self.spec.id)
            await self._unborn(VmState.FAILED, "engine-defect", f"internal error: {type(error).__name__}")
        else:
            await self._live(booted)

    async def _unborn(
        self, state: VmState, code: str, reason: str, *, exit_code: int | None = None, permanent: bool = False
    ) -> None:
        """It never ran. Its boot has undone all but a VMM that would not end, which then is what it failed with."""
        self._booting = False
        self._born.set()
        if self.record.handle is not None:
            await self._clear_away(self.record.handle)
        if self.record.asked and code == UNKILLABLE:
            state, code, reason = VmState.STOPPED, "stopped", "stopped while it was starting"
        self._settle(state, code, reason, exit_code=exit_code, permanent=permanent)

    async def _live(self, booted: Booted) -> None:
        self._booting = False
        self._born.set()
        self._listener.opened(booted.channel, booted.events)
        self._begin_running(booted.handle)
        await self._watch_over(booted.handle)

    def step(self, name: str) -> None:
        self.record = replace(self.record, status=replace(self.record.status, reason_code=name))
        self._changed()

    def attached(self, lease: Lease) -> None:
        self.record = replace(self.record, ipv4=lease.ipv4, ipv6=lease.ipv6)

    def spawning(self) -> None:
        self._spawned_at = time.monotonic()
        if self.state is not VmState.RESUMING:
            self._move(VmState.STARTING, "boot")

    def spawned(self, handle: VmHandle, assets: BootAssets) -> None:
        self.record = replace(self.record, handle=handle, kernel=assets.kernel_hash, init=assets.initrd_hash)
        self._parts.records.keep(self.record)

    def console(self, lines: tuple[str, ...]) -> None:
        self._listener.note(lines[-TAIL_LINES:])

    async def heard(self, event: GuestEvent) -> None:
        await self._listener.heard(event)

    # Supervision

    async def _watch_over(self, handle: VmHandle) -> None:
        try:
            await self._conclude(await self._supervise(handle))
        except Exception as error:
            log.exception("vm.supervision_broke", vm=self.spec.id)
            await self._end(handle, VmState.FAILED, "engine-defect", f"internal error: {type(error).__name__}")

    async def _supervise(self, handle: VmHandle) -> VmmExit:
        watch = asyncio.create_task(self._backend(handle).wait_vm(handle))
        pump = asyncio.create_task(self._listener.listen())
        heard = asyncio.create_task(self._listener.exited())
        doomed = asyncio.create_task(self._doomed.wait())
        try:
            await asyncio.wait({watch, pump, heard, doomed}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watch, doomed}, timeout=EXIT_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            await self._kill(handle, watch)
            ended = await watch
            await asyncio.wait({pump}, timeout=1.0)
        finally:
            for task in (watch, pump, heard, doomed):
                task.cancel()
            await self._listener.aclose()
        return ended

    async def _kill(self, handle: VmHandle, watch: asyncio.Task[VmmExit] | None = None) -> None:
        """Return when its VMM has ended, however often that has to be tried. `watch` sees its end."""
        while watch is None or not watch.done():
            try:
                await self._backend(handle).stop_vm(handle)
                break
            except (PlasmaError, OSError) as error:
                self._hangs(error)
            await (asyncio.sleep(RETRY_S) if watch is None else asyncio.wait({watch}, timeout=RETRY_S))
        self._trouble = None
        self._hung.clear()

    def _hangs(self, error: PlasmaError | OSError) -> None:
        """Its VMM was to end, and does not."""
        trouble = error if isinstance(error, PlasmaError) else HostError(UNKILLABLE, str(error))
        if self._trouble is None:
            log.error("vm.does_not_end", vm=self.spec.id, reason=str(trouble))
        self._trouble = trouble
        if VmState.STOPPING in MOVES[self.state]:
            self._move(VmState.STOPPING)
        status = replace(self.record.status, reason=str(trouble), reason_code=trouble.code, guest_ready=False)
        if status != self.record.status:
            self.record = replace(self.record, status=status)
            self._parts.records.keep(self.record)
            self._changed()
        self._hung.set()

    # End

    async def _conclude(self, ended: VmmExit) -> None:
        exited = self._listener.exit
        if exited is not None:
            code, reason = self._exit_reason(exited)
            await self._finish(VmState.STOPPED, code, reason, exit_code=exited.exit_code)
        elif self.record.asked:
            await self._finish(VmState.STOPPED, "stopped", "stopped without an answer from the guest")
        elif self._parts.fences.is_over(self.spec.volumes):
            await self._finish(VmState.FAILED, "fenced", "the time for which it could have its volumes was over")
        else:
            self.console(ended.console)
            how = "" if ended.code is None else f" (exit code {ended.code})"
            details = f": {ended.complaint}" if ended.complaint else ""
            await self._finish(VmState.FAILED, "vmm-died", f"the VM's process ended unexpectedly{how}{details}")

    def _exit_reason(self, ended: GuestExited) -> tuple[str, str]:
        if self.record.asked:
            return "stopped", "stopped as asked"
        if ended.oom:
            return "oom", f"the workload ran out of memory ({self.spec.resources.memory_bytes >> 20} MiB)"
        return "exited", f"the workload ended with exit code {ended.exit_code}"

    async def _end(self, handle: VmHandle, state: VmState, code: str, reason: str) -> None:
        await self._kill(handle)
        await self._finish(state, code, reason)

    async def _clear_away(self, handle: VmHandle) -> None:
        """Return when nothing is left of a VMM whose start was undone, and which perhaps did not end."""
        await self._kill(handle)
        await self._forget(handle)

    async def _forget(self, handle: VmHandle) -> None:
        """Have the backend forget a VMM; where that fails it is `_left`."""
        self._left = handle
        try:
            await self._forget_left()
        except (PlasmaError, OSError) as error:
            log.warning("vm.vmm_not_forgotten", vm=self.spec.id, error=str(error))

    async def _forget_left(self) -> None:
        """Return when nothing is left of an earlier VMM of this VM.

        Raises:
            PlasmaError: it cannot be removed; that may be tried again.
        """
        if self._left is not None:
            await self._backend(self._left).delete_vm(self._left)
            self._left = None

    async def _finish(self, state: VmState, code: str, reason: str, *, exit_code: int | None = None) -> None:
        """The end of a VM that had a process: give back what the host lent, then tell."""
        await self._release()
        self._settle(state, code, reason, exit_code=exit_code)

    def _settle(
        self, state: VmState, code: str, reason: str, *, exit_code: int | None = None, permanent: bool = False
    ) -> None:
        """Write the last status."""
        self._booting = False
        self._born.set()
        status = replace(
            self.record.status,
            state=advance(self.state, state),
            since=self._parts.clock(),
            reason=reason,
            reason_code=code,
            permanent=permanent,
            exit_code=exit_code,
            guest_ready=False,
            endpoints=(),
            private_address="",
            log_tail=self._listener.last_lines(TAIL_LINES),
        )
        self.record = replace(self.record, status=status)
        self._parts.records.keep(self.record)
        self._ended.set()
        failed = state is VmState.FAILED or exit_code is None
        self._listener.ended(GuestError(code, reason) if failed else ExecExit(exit_code or 0))
        self._changed()

    async def _release(self, *, suspended: bool = False) -> None:
        """Give back what the host lent to this VM; one that is suspended keeps what it goes on with. One part that fails
        does not keep the others."""
        handle = self.record.handle
        releases = [self._parts.network.release(self.key)]
        if handle is not None:
            releases.append(self._forget(handle))
        releases.append(self._parts.fences.lift(self.key))
        for release in releases:
            try:
                await release
            except (PlasmaError, OSError) as error:
                log.warning("vm.not_released", vm=self.spec.id, error=str(error))
        if not suspended:
            self._parts.images.release(self.key)
            self._parts.volumes.holdings.release(self.spec.id)
        shutil.rmtree(self._parts.runtime_dir(self.key), ignore_errors=True)

    # Small parts

    def _hold(self) -> None:
        self._parts.images.hold(self.spec.image, self.key)
        self._parts.volumes.holdings.hold(self.spec.id, self.spec.volumes)

    def _backend(self, handle: VmHandle) -> HypervisorBackend:
        return self._parts.registry.get(handle.backend)

    def _move(self, to: VmState, step: str = "") -> None:
        if self.state is to:
            return
        status = replace(self.record.status, state=advance(self.state, to), since=self._parts.clock(), reason_code=step)
        self.record = replace(self.record, status=status)
        self._parts.records.keep(self.record)
        self._changed()

    def _begin_running(self, handle: VmHandle) -> None:
        capabilities = self._backend(handle).capabilities
        address = handle.endpoint if self.record.ipv4 is None else f"tcp:{self.record.ipv4}"
        status = replace(
            self.record.status,
            guest_ready=True,
            endpoints=(address,) if address else (),
            private_address="" if self.record.ipv6 is None else str(self.record.ipv6),
            backend=capabilities.name,
            acceleration=capabilities.acceleration.value,
            confinement=handle.backend_state.get("confinement", ""),
        )
        self.record = replace(self.record, status=status)
        self._move(VmState.RUNNING)
        log.info("vm.running", vm=self.spec.id, boot_s=round(time.monotonic() - self._spawned_at, 3))
