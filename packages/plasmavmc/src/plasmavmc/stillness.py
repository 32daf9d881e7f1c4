"""A running VM that is made to stand still: by one at a time, and not while it is to end.

Theory. A VMM does not count pauses: who lets the vCPUs run lets them run for everybody. So who needs a VM to stand still,
for a copy of its volume or of its memory, has it alone (`turn`), from before the first word to its guest, which could not
answer while another has it stand, until it runs on. The others wait, and look again whether the VM is still what it was.

A copy may take long, and a stop does not wait for it: it takes the pause back (`break_off`), so that the guest can end in
its own way. Who needed the pause is told so at its end. An engine that dies while a VM stands takes the copy with it; the
next one lets the VM run as it adopts it, before anybody can have a turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from plasmavmc.deadlines import within
from plasmavmc.errors import PlasmaError, UnavailableError
from plasmavmc.host.threads import to_its_end
from plasmavmc.hypervisor.backend import Pausable
from plasmavmc.types import VmHandle

TURN_S = 60.0
"""For a copy of a volume to be done, for which the VM stands still, before it is suspended or copied itself, or has another
volume grow."""

log = structlog.get_logger("plasmavmc.stillness")


class Stillness:
    """See the module's head. One per VM and engine."""

    def __init__(self, vm_id: str) -> None:
        self._vm_id = vm_id
        self._turns = asyncio.Lock()
        self._pause: _Pause | None = None

    @asynccontextmanager
    async def turn(self, within_s: float | None = None) -> AsyncIterator[None]:
        """For the block nobody else has the VM stand still. Turns come in the order in which they were asked for.

        Raises:
            UnavailableError: `vm-busy`, others had it for so many seconds.
        """
        try:
            async with within(within_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise UnavailableError(
                "vm-busy",
                f"VM {self._vm_id} stands still for a copy of a volume of it, now for more than {within_s:g} s",
                resolution="Try again when that is done.",
            ) from error
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def paused(self, backend: Pausable, handle: VmHandle) -> AsyncIterator[None]:
        """In a turn: for the block the vCPUs stand still. However it ends they run on.

        Raises:
            UnavailableError: `volume-busy`, the VM is being stopped and did not stand still to the block's end.
            HostError, UnavailableError: the VMM did not stop them, or did not let them run on.
        """
        self._pause = pause = _Pause(backend, handle)
        try:
            await backend.pause_vm(handle)
            pause.check_held()  # whoever broke it off may have been quicker than the VMM
            yield
        except BaseException:
            try:
                await pause.end()
            except PlasmaError as error:
                log.warning("vm.not_unpaused", vm=self._vm_id, error=str(error))
            raise
        finally:
            self._pause = None
        pause.check_held()
        await pause.end()

    async def break_off(self) -> None:
        """Let the VM run on now, for it is to end; one that does not run on ends all the same."""
        if self._pause is not None:
            try:
                await self._pause.end()
            except PlasmaError as error:
                log.warning("vm.not_unpaused", vm=self._vm_id, error=str(error))


class _Pause:
    def __init__(self, backend: Pausable, handle: VmHandle) -> None:
        self._backend = backend
        self._handle = handle
        self._over = False

    def check_held(self) -> None:
        if self._over:
            raise UnavailableError(
                "volume-busy",
                f"VM {self._handle.vm_id} is being stopped, and did not stand still for as long as that took",
                resolution="Try again when it has ended.",
            )

    async def end(self) -> None:
        """Who is cancelled meanwhile waits all the same: nothing must be left standing."""
        self._over = True
        await to_its_end(self._backend.unpause_vm(self._handle))
