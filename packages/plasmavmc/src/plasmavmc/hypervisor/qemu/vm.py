"""One VM's QEMU, as the backend holds it: its process, its sockets, and who speaks to its monitor.

Theory. QEMU hears one monitor client at a time, so a session is held only from the loading of a state to the start, which
nobody may come between; everything else opens one for as long as it needs. A QEMU that cannot start says why on its own
output and ends: that is found where its monitor does not come up.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from plasmavmc.errors import ConflictError, GuestError, HostError, PlasmaError, UnavailableError
from plasmavmc.hypervisor.backend import MemoryPlan
from plasmavmc.hypervisor.console import connect_console
from plasmavmc.hypervisor.process import VmmProcess
from plasmavmc.hypervisor.qemu import migration
from plasmavmc.hypervisor.qemu.qmp import QmpSession, qmp_session
from plasmavmc.hypervisor.qemu.sockets import VmSockets

START_DEADLINE_S = 20.0
"""For the monitor of a VMM that was just spawned. It takes 30 ms on an idle host."""
QUIT_DEADLINE_S = 1.0
"""For an end over QMP, before SIGKILL."""
BOOT_ERROR_LINES = 5
_NEVER_RAN = frozenset({"prelaunch", "inmigrate"})


@dataclass(slots=True)
class QemuVm:
    """See the module's head."""

    vm_id: str
    process: VmmProcess
    sockets: VmSockets
    memory: MemoryPlan | None = None
    """It waits for a state."""
    started: bool = False
    monitor: QmpSession | None = None
    """Held from the loading of a state to the start."""

    async def load(self, state: int) -> None:
        """Give it the state that it waits for.

        Raises:
            ConflictError: `vm-started`, it waits for none.
            HostError: `state-refused`, with QEMU's own words; as `first_monitor`.
        """
        if self.started or self.memory is None:
            raise ConflictError("vm-started", f"VM {self.vm_id} does not wait for a state")
        self.monitor = self.monitor or await self._open_monitor()
        try:
            await migration.load(self.monitor, state, leave_memory=self.memory.filled)
        except PlasmaError as error:
            if not await self.process.ended(1.0):
                raise
            details = (await self.process.wait()).complaint
            raise HostError("state-refused", "QEMU did not take the guest's state", details=details) from error
        self.memory = None

    async def first_monitor(self) -> QmpSession:
        """The monitor of a VM that is to run now, which it does once; the caller closes it.

        Raises:
            ConflictError: `vm-started`.
            HostError: `vmm-refused`, QEMU did not take its command line, with what it said.
            UnavailableError: `vmm-silent`, its monitor does not answer.
        """
        if self.started:
            raise ConflictError("vm-started", f"VM {self.vm_id} was started already")
        self.started = True
        held, self.monitor = self.monitor, None
        return held or await self._open_monitor()

    async def _open_monitor(self) -> QmpSession:
        try:
            self.process.console = connect_console(self.sockets.console)
            return await QmpSession.open(self.sockets.qmp, START_DEADLINE_S)
        except (UnavailableError, OSError) as error:
            if not await self.process.ended(1.0):
                raise UnavailableError("vmm-silent", f"QEMU did not come up within {START_DEADLINE_S:g} s") from error
            ended = await self.process.wait()
            raise HostError(
                "vmm-refused", f"QEMU ended at its start with code {ended.code}", details=ended.complaint
            ) from error

    async def let_run(self, deadline_s: float) -> bool:
        """Whether its guest runs, or does again; False where it never did.

        Raises:
            UnavailableError: `qmp-silent`, its monitor does not answer.
        """
        async with qmp_session(self.sockets.qmp, deadline_s) as monitor:
            state = await migration.run_state(monitor, deadline_s)
            if state in _NEVER_RAN:
                return False
            await migration.go_on(monitor)
            return True

    async def execute(self, command: str) -> None:
        """One order to its monitor."""
        async with qmp_session(self.sockets.qmp) as monitor:
            await monitor.execute(command)

    async def end(self) -> None:
        """Have QEMU end: over its monitor, so that it finishes the writes it has accepted, and by SIGKILL where it does not.

        Raises:
            HostError, UnavailableError: as `VmmProcess.kill`.
        """
        self._let_go_of_monitor()
        if self.process.alive:
            with suppress(PlasmaError):
                async with qmp_session(self.sockets.qmp, QUIT_DEADLINE_S) as monitor:
                    await monitor.quit(QUIT_DEADLINE_S)
                    await self.process.ended(QUIT_DEADLINE_S)
        await self.process.kill()

    def close(self) -> None:
        """Let go of it; it runs on."""
        self._let_go_of_monitor()
        self.process.close()

    def _let_go_of_monitor(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = None

    async def boot_error(self, cause: GuestError) -> GuestError:
        """What is known of a guest that did not come up."""
        if await self.process.ended(1.0):
            ended = await self.process.wait()
            details = ended.complaint or "\n".join(ended.console[-BOOT_ERROR_LINES:])
            return GuestError("boot-failed", "the VMM ended while the guest was starting", details=details)
        console = self.process.console.ring.lines(BOOT_ERROR_LINES) if self.process.console is not None else ()
        details = "\n".join((cause.brief, *console))
        return GuestError("boot-timeout", "the guest did not start", details=details, resolution=cause.resolution)
