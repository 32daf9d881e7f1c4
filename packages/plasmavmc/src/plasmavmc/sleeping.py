"""A VM that can be suspended, resumed and copied: what `Machine` does, around the times when it has no process.

Theory. At most one suspend, resume or copy of a VM is under way; it is a task of its own, so that a caller who goes
away does not cut it in the middle. A suspend or copy whose caller is cancelled is given up, which lets the VM run on.
A resume belongs to all who ask for it: it is given up only when the VM is to be stopped, and not once its snapshot is used
up: then it is waited for, and the VM ends as one that runs. Whoever stops, lets go or deletes a VM settles what is under
way first, and then finds it running, suspended or ended, never in between.
A suspend or copy waits for its turn among all who have the VM stand still (`stillness`), and can be given up while it does.

What a restart of the engine finds is settled by one question: does a snapshot of the VM count? If so it is suspended,
and a process of it is not to run on. If not, its process lives (it stood still for a snapshot that never counted, or
was just woken) and runs on, or it has ended. That its record says `running` changes nothing: it may be an older one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace

import structlog

from plasmavmc.booting import Booted
from plasmavmc.errors import ConflictError, PlasmaError
from plasmavmc.forking import Template, check_forkable, take_template
from plasmavmc.guest.api import GuestCard, GuestChannel, GuestNetwork
from plasmavmc.machine import Machine
from plasmavmc.quiesce import plain_card, suspendable
from plasmavmc.records import COPYING, VmRecord
from plasmavmc.states import VmState
from plasmavmc.stillness import TURN_S
from plasmavmc.suspending import resume, take_snapshot
from plasmavmc.types import VmHandle

_BETWEEN = frozenset({VmState.SUSPENDING, VmState.RESUMING})
_MAY_SLEEP = _BETWEEN | {VmState.RUNNING, VmState.SUSPENDED}
ADOPT_S = 5.0
"""For a guest that stood still to run on after a restart, before the engine goes on without waiting for it."""

log = structlog.get_logger("plasmavmc.sleeping")


class SuspendableMachine(Machine):
    """See the module's head. The manager holds one per VM id."""

    _pausing: asyncio.Task[None] | None = None
    """A suspend, resume or copy under way."""
    _clearing: asyncio.Task[None] | None = None
    """A snapshot that was used is being removed."""
    _certain = False
    """It is done but for clearing up, or was given up: it is not given up any more."""
    _leaving: asyncio.Task[None] | None = None
    """Its end, while it is suspended."""

    def guest(self) -> GuestChannel:
        """The way to its guest.

        Raises:
            ConflictError: `vm-suspended`, `vm-not-running`: there is none now.
        """
        channel = self.channel
        if channel is None:
            asleep, state = self.state is VmState.SUSPENDED, self.state.value
            raise ConflictError(
                "vm-suspended" if asleep else "vm-not-running",
                f"VM {self.spec.id} is {state}",
                resolution="Resume it first."
                if asleep
                else "Commands, and copies of files, can be run in a running VM only.",
            )
        return channel

    # Orders

    async def suspend(self) -> None:
        """Suspend to disk; returns when it is done. A cancelled caller gives it up.

        Raises:
            ConflictError: its state forbids it, or its backend cannot.
            UnavailableError: `vm-busy`, a copy of a volume of it takes long.
            PlasmaError: it failed, with the reason; the VM runs on.
        """
        if self.state is VmState.SUSPENDED:
            return
        channel, handle = self._running("suspended")
        suspendable(self._backend(handle))
        suspending = self._pause(self._suspend(channel, handle), VmState.SUSPENDING, "snapshot")
        await self._give_up_with_caller(suspending, "suspended")

    async def resume(self) -> None:
        """Run again from the snapshot; returns when the workload does. All who ask share one resume.

        Raises:
            ConflictError: its state forbids it, or the snapshot is of another VM or host.
            PlasmaError: it failed, with the reason; or its last VMM does not end. Where the snapshot still counts the VM
                stays suspended.
        """
        if self.state is VmState.SUSPENDED and self._pausing is not None:
            await self._or_hangs(asyncio.wait({self._pausing}))  # its last VMM is being ended; two have not the same id
        if self.state is VmState.RUNNING:
            return
        resuming = self._pausing
        if self.state is VmState.SUSPENDED and (self._leaving is None or self._leaving.done()):
            resuming = self._pause(self._resume(), VmState.RESUMING, "snapshot")
        if self.state is not VmState.RESUMING or resuming is None:
            raise self._forbidden("resumed")
        await self._outcome(resuming, "resumed")

    async def template(self) -> Template:
        """What copies of it can be made from; the caller closes it. A cancelled caller gives it up.

        Raises:
            ConflictError: it may not be copied, or its state forbids it.
            UnavailableError: as `suspend`.
            PlasmaError: it failed, with the reason; the VM runs on.
        """
        channel, handle = self._running("copied")
        check_forkable(self.spec, self._backend(handle).capabilities)
        taken: list[Template] = []

        async def take() -> None:
            async with self.stillness.turn(TURN_S):
                taken.append(await take_template(self.record, self.key, channel, self._parts))

        try:
            await self._give_up_with_caller(self._pause(take(), VmState.SUSPENDING, COPYING), "copied")
        except BaseException:
            for template in taken:
                await template.aclose()
            raise
        return taken[0]

    def start_as_copy(self, template: Template) -> None:
        """Begin its life with another's memory. The template must be there until `born` returns."""
        self.record = replace(self.record, generation=template.generation)

        async def copied() -> Booted:
            return await template.copy(self.spec, self.key, self._parts, self)

        self._begin(copied)

    async def born(self) -> None:
        """Return when it has begun to run, or never will."""
        await self._born.wait()

    async def stop(self, grace_s: float) -> None:
        """End the workload gracefully, then the VM; returns when it has ended. Idempotent. A suspended one just
        ends."""
        await self._settle_pause()
        await self.cleared()
        if self.state is VmState.SUSPENDED:
            leaving = self._leaving
            if leaving is None or leaving.done():
                leaving = self._leaving = asyncio.create_task(self._leave(), name=f"end {self.spec.id}")
            await asyncio.shield(leaving)
        else:
            await super().stop(grace_s)

    async def _leave(self) -> None:
        await self._parts.snapshots.delete(self.key)
        self.record = replace(self.record, asked=True)
        await self._finish(VmState.STOPPED, "stopped", "stopped while it was suspended")

    async def let_go(self) -> None:
        """Stop supervising without touching the VM. A resume is waited for; a suspend or copy is given up. Where its VMM
        does not end, it is left as it is."""
        pausing = self._pausing
        try:
            if self.state is VmState.RESUMING and pausing is not None:
                await self._or_hangs(asyncio.wait({pausing}))
            await self._settle_pause()
        except PlasmaError:
            if pausing is not None:
                pausing.cancel()
                await asyncio.wait({pausing})
        await self.cleared()
        if self._leaving is not None:
            await asyncio.wait({self._leaving})
        if self.state is not VmState.SUSPENDED:
            await super().let_go()

    async def delete(self) -> None:
        """Remove what is left of an ended VM; its log stays until its day is over."""
        await self._parts.snapshots.delete(self.key)
        await super().delete()

    # After a restart of the engine

    async def adopt(self) -> None:
        """Settle what a restart has left, by whether a snapshot counts."""
        handle = self.record.handle
        if self.state in _MAY_SLEEP and self._parts.snapshots.has(self.key):
            await self._adopt_suspended(handle)
        elif self.state is not VmState.SUSPENDED and self.state not in _BETWEEN:
            await super().adopt()
        elif handle is None:
            code = "snapshot-missing" if self.state is VmState.SUSPENDED else "engine-restarted"
            await self._finish(VmState.FAILED, code, "there is no snapshot of it, and no process")
        else:
            await self._adopt_between(handle)

    async def _adopt_suspended(self, handle: VmHandle | None) -> None:
        if self.state is VmState.RUNNING:
            self._move(VmState.SUSPENDING)
        self._hold()
        if handle is not None:
            self._certain = True
            resting = self._begin_pause(self._end_and_rest(handle), "rest")
            with suppress(PlasmaError):  # the engine does not wait for one that hangs
                await self._or_hangs(asyncio.wait({resting}))
        elif self.state is not VmState.SUSPENDED:
            await self._rest()

    async def _adopt_between(self, handle: VmHandle) -> None:
        """Its process lives, or has ended. Perhaps its workload stands still: it is told to run on, which changes
        nothing where it runs already."""
        channel = await self._recovered(handle)
        if channel is None:
            return
        try:
            card = await self._card_after_restart()
            self._hold()
        except PlasmaError as error:
            await self._does_not_run_on(channel, error)
            return
        self._certain = True
        going = self._begin_pause(self._run_on(handle, channel, card), "run on")
        await asyncio.wait({going}, timeout=ADOPT_S)

    async def _run_on(self, handle: VmHandle, channel: GuestChannel, card: GuestCard) -> None:
        try:
            await channel.thaw(card)
        except Exception as error:
            if not isinstance(error, PlasmaError):
                log.exception("vm.thaw_broke", vm=self.spec.id)
            await self._does_not_run_on(channel, error)
            raise
        events = channel.events()
        self._task = asyncio.create_task(self._live(Booted(handle, channel, events)), name=f"vm {self.spec.id}")

    async def _does_not_run_on(self, channel: GuestChannel, error: Exception) -> None:
        await channel.aclose()
        await self.disown(error)

    async def _card_after_restart(self) -> GuestCard:
        card = plain_card(self._parts)
        network = None
        if self.record.ipv4 is not None:
            attached = await self._parts.network.adopt(self.key, self.spec.networks[0], self.record.ipv4)
            network = GuestNetwork.of(attached.lease, self._parts.nameservers)
        if self.state is VmState.SUSPENDING:
            return card
        self.record = replace(self.record, generation=self.record.generation + 1)
        return replace(
            card,
            generation=self.record.generation,
            hostname=self.spec.hostname or self.spec.name,
            network=network,
        )

    # One at a time

    def _running(self, done: str) -> tuple[GuestChannel, VmHandle]:
        channel, handle = self.channel, self.record.handle
        if channel is None or handle is None or self._pausing is not None:
            raise self._forbidden(done)
        return channel, handle

    def _forbidden(self, done: str) -> ConflictError:
        state = self.state.value
        return ConflictError(f"vm-{state}", f"VM {self.spec.id} is {state} and cannot be {done} now")

    def _pause(self, doing: Coroutine[None, None, None], state: VmState, step: str) -> asyncio.Task[None]:
        self._move(state, step)
        self._certain = False
        return self._begin_pause(doing, state.value)

    def _begin_pause(self, doing: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        self._pausing = asyncio.create_task(doing, name=f"{name} {self.spec.id}")
        self._pausing.add_done_callback(self._paused)
        return self._pausing

    def _paused(self, pausing: asyncio.Task[None]) -> None:
        """It is over, well or not; one that was given up or failed before it counted lets the VM be what it was. One that
        counts, and was let go of while its VMM did not end, is the next engine's."""
        if self._pausing is pausing:
            self._pausing = None
        if not pausing.cancelled():
            pausing.exception()  # it may be that nobody waits for it any more
        goes_on = self._trouble is None and not self._parts.snapshots.has(self.key)
        if self.state is VmState.SUSPENDING and goes_on:
            self._move(VmState.RUNNING)

    async def _outcome(self, pausing: asyncio.Task[None], done: str) -> None:
        """Return when it is over, or raise what it failed with; `ConflictError` where the VM's end has given it up."""
        own = asyncio.current_task()
        asked_before = own.cancelling() if own is not None else 0
        try:
            await asyncio.shield(pausing)
        except asyncio.CancelledError:
            if own is None or own.cancelling() > asked_before or not pausing.cancelled():
                raise
            raise ConflictError(
                "vm-stopping", f"VM {self.spec.id} was to end, and could not be {done}", resolution="Start another."
            ) from None

    async def _give_up_with_caller(self, pausing: asyncio.Task[None], done: str) -> None:
        try:
            await self._outcome(pausing, done)
        except asyncio.CancelledError:
            with suppress(PlasmaError):
                await self._settle_pause()
            raise

    async def _settle_pause(self) -> None:
        """Give up what can still be given up, and wait until it is over either way.

        Raises:
            PlasmaError: its VMM does not end, so it may never be.
        """
        pausing = self._pausing
        if pausing is None:
            return
        if not self._certain:
            self._certain = True
            pausing.cancel()
        while self._pausing is pausing:  # until `_paused` was told; that it is done is not enough
            await self._or_hangs(asyncio.wait({pausing}))

    # What is under way

    async def _suspend(self, channel: GuestChannel, handle: VmHandle) -> None:
        async with self.stillness.turn(TURN_S):
            await take_snapshot(self.record, self.key, channel, self._parts)
            self._certain = True
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait({self._task})
            if self._ended.is_set():  # its VMM died just now, and that was told
                await self._parts.snapshots.delete(self.key)
                raise self._forbidden("suspended")
            await self._end_and_rest(handle)

    async def _end_and_rest(self, handle: VmHandle) -> None:
        await self._kill(handle)
        await self._rest()

    async def _rest(self) -> None:
        """A suspended VM has no process: only its image, its disks and its snapshot. What its VMM has left, where that could
        not be removed, is not forgotten: it is in the way of the next."""
        await self._release(suspended=True)
        with suppress(OSError):
            self._listener.log.flush()
        status = replace(
            self.record.status, guest_ready=False, endpoints=(), private_address="", reason="", reason_code=""
        )
        self.record = replace(self.record, handle=self._left, status=status)
        if self.state is VmState.SUSPENDED:
            self._parts.records.keep(self.record)
            self._changed()
        self._move(VmState.SUSPENDED)
        await self._parts.records.settled(self.spec.id)

    async def _resume(self) -> None:
        await self.cleared()
        before = self.record = replace(self.record, status=replace(self.record.status, reason=""))
        try:
            await self._forget_left()
            self.record = replace(self.record, handle=None)
            booted = await resume(before, self.key, self._parts, self, self._commit)
        except BaseException as error:
            await self._not_resumed(before, error)
            raise
        self.record = replace(self.record, generation=before.generation + 1)
        self._task = asyncio.create_task(self._live(booted), name=f"vm {self.spec.id}")
        self._clearing = asyncio.create_task(self._parts.snapshots.clear(self.key), name=f"clear {self.spec.id}")

    def _commit(self) -> None:
        self._certain = True

    async def cleared(self) -> None:
        """Return when nothing is left of snapshots that were used."""
        if self._clearing is not None:
            await asyncio.wait({self._clearing})

    async def _not_resumed(self, before: VmRecord, error: BaseException) -> None:
        self._certain = True  # from here on it is cleared up, and that must not be cut short
        code = error.code if isinstance(error, PlasmaError) else ""
        reason = str(error) if isinstance(error, PlasmaError) else ""
        if self.record.handle is not None:
            await self._clear_away(self.record.handle)
        if self._parts.snapshots.has(self.key):
            spec = self.record.spec  # what it may was perhaps changed meanwhile
            self.record = replace(before, spec=spec, handle=self._left, status=replace(before.status, reason=reason))
            self._move(VmState.SUSPENDED, code)
        else:
            await self._parts.snapshots.delete(self.key)
            await self._finish(VmState.FAILED, code or "not-resumed", f"it was woken and did not run on: {reason}")
