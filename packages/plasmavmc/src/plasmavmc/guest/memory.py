"""A pretended guest, for tests and simulation: it speaks as the real one does, without a VM.

A `MemoryGuest` outlives its channels, as a VM outlives the engine: `attach` gives a new channel and cuts the one before,
and tells again what a resync tells. What its workload does is a `Script`; a test may also drive it by hand (`write`,
`exit`). Commands it knows: `echo WORDS`, `cat`, `exit CODE`, `sleep` (until it is signalled or hung up).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from plasmavmc.errors import ConflictError, GuestError
from plasmavmc.guest.api import (
    GuestCard,
    GuestConfig,
    GuestEvent,
    GuestExited,
    GuestFailed,
    GuestHello,
    GuestOutput,
    GuestReady,
)
from plasmavmc.guest.memory_sessions import MemoryCopy, MemoryExecSession
from plasmavmc.guest.messages import (
    encode_config,
    encode_copy_in,
    encode_copy_out,
    encode_exec,
    signal_number,
)
from plasmavmc.guest.words import Events
from plasmavmc.types import CopyTarget, ExecSpec, LogStream, Stdio, TerminalSize

SIGKILL = 9
MAX_COMMANDS = 32


@dataclass(frozen=True, slots=True)
class Script:
    """What the workload does once it is configured."""

    failure: GuestFailed | None = None
    """It cannot be started."""
    output: tuple[tuple[LogStream, bytes], ...] = ()
    """What it writes at its start."""
    exit_code: int | None = None
    """It ends by itself with this, after its output; None: it runs until it is stopped."""
    oom: bool = False
    freeze_failure: GuestError | None = None
    """It cannot be held still."""
    thaw_failure: GuestError | None = None
    """Restored, it cannot become who it is to be."""
    volume_failure: GuestError | None = None
    """Nothing can be done to its volumes."""
    stop_code: int | None = 0
    """How it answers the stop signal; None: it does not, and is killed when the grace is over."""
    deaf: bool = False
    """It takes no notice of signals that are passed on."""
    echoes: bool = False
    """It writes what it reads, and ends with 0 at the end of its input."""


Scripts = Callable[[GuestConfig], Script]


def serve(_config: GuestConfig) -> Script:
    """Runs until it is stopped."""
    return Script()


class MemoryGuest:
    """A guest without a VM. Fits `hypervisor.memory.PretendedGuest`."""

    def __init__(self, scripts: Scripts = serve, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._scripts = scripts
        self._sleep = sleep
        self._script = Script()
        self._channel: MemoryGuestChannel | None = None
        self._booted = False
        self._off = asyncio.Event()
        self._end: GuestExited | GuestFailed | None = None
        self._killer: asyncio.Task[None] | None = None
        self._unacknowledged: deque[GuestOutput] = deque()
        self._next_offset = 0
        self.config: GuestConfig | None = None
        """What the guest was told to run; None before."""
        self.commands: list[ExecSpec] = []
        """Commands that were started beside the workload."""
        self.held = False
        """Its workload stands still."""
        self.cards: list[GuestCard] = []
        """What it was told when it was let go on."""
        self.workload = MemoryWorkload(self)
        self.frozen: set[int] = set()
        """Volumes, by their disk, that nobody can write to now."""
        self.orders: list[tuple[str, int, int]] = []
        """What was asked of its volumes: verb, disk, size."""
        self.copied: dict[str, bytes] = {}
        """Tar streams by the path that they were copied to, and are given out from."""

    @property
    def unacknowledged(self) -> int:
        """How many pieces of output the host has not acknowledged."""
        return len(self._unacknowledged)

    # The VM's side

    def boot(self) -> None:
        """Let it run."""
        self._booted = True
        self._say_hello()

    def attach(self) -> MemoryGuestChannel:
        """A channel to it; one made before is cut."""
        self.cut()
        self._channel = MemoryGuestChannel(self)
        if self._booted:
            self._say_hello()
        return self._channel

    def cut(self) -> None:
        """The channel ends: the VM is gone, or the host's side."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.end()

    async def powered_off(self) -> None:
        """Return when it has switched itself off."""
        await self._off.wait()

    # The workload's side

    def write(self, data: bytes, stream: LogStream = LogStream.STDOUT) -> None:
        """The workload writes."""
        output = GuestOutput(stream, self._next_offset, data)
        self._next_offset += len(data)
        self._unacknowledged.append(output)
        self._tell(output)

    def exit(self, code: int, *, oom: bool = False) -> None:
        """The workload ends, and with it the VM."""
        self._finish(GuestExited(code, oom))

    def hear_input(self, data: bytes) -> None:
        """Something for the workload's stdin."""
        if self._script.echoes and self._end is None and self.config is not None:
            self.write(data)

    def hear_eof(self) -> None:
        """The end of its stdin."""
        if self._script.echoes and self.config is not None and self.config.stdio is not Stdio.TERMINAL:
            self.exit(0)

    def hear_signal(self, number: int) -> None:
        """A signal to its process."""
        if not self._script.deaf:
            self.exit(128 + number)

    # What the channel asks

    def configure(self, config: GuestConfig) -> None:
        if self.config is not None:
            raise ConflictError("configured", "the guest has its configuration already")
        encode_config(config)
        self.config = config
        self._script = self._scripts(config)
        if self._script.failure is not None:
            self._finish(self._script.failure)
            return
        self._tell(GuestReady())
        for stream, data in self._script.output:
            self.write(data, stream)
        if self._script.exit_code is not None:
            self.exit(self._script.exit_code, oom=self._script.oom)

    def freeze(self) -> None:
        if self._end is not None:
            raise GuestError("freeze-not-running", "there is no workload that runs")
        if self._script.freeze_failure is not None:
            raise self._script.freeze_failure
        self.held = True

    def thaw(self, card: GuestCard) -> None:
        if card.generation and self._script.thaw_failure is not None:
            raise self._script.thaw_failure
        self.cards.append(card)
        self.held = False

    def order(self, verb: str, disk: int, size_bytes: int = 0) -> None:
        """Something for a volume."""
        mounted = () if self.config is None else self.config.volumes
        if all(volume.disk != disk for volume in mounted):
            raise GuestError("volume-no-volume", f"there is no volume on disk {disk}")
        if self._script.volume_failure is not None:
            raise self._script.volume_failure
        if verb == "thaw" and disk not in self.frozen:
            raise GuestError("volume-not-frozen", "the volume is not frozen any more")
        self.orders.append((verb, disk, size_bytes))
        self.frozen = (self.frozen | {disk}) if verb == "freeze" else (self.frozen - {disk})

    def copy(self) -> MemoryGuest:
        """Another guest with the same memory: what a snapshot holds."""
        twin = MemoryGuest(self._scripts, sleep=self._sleep)
        twin._script, twin._booted, twin.config, twin.held = self._script, self._booted, self.config, self.held
        twin._unacknowledged, twin._next_offset = deque(self._unacknowledged), self._next_offset
        twin.cards, twin.commands, twin.copied = list(self.cards), list(self.commands), dict(self.copied)
        return twin

    def acknowledge(self, offset: int) -> None:
        while self._unacknowledged and _end_of(self._unacknowledged[0]) <= offset:
            self._unacknowledged.popleft()

    def stop(self, number: int, grace_s: float) -> None:
        if self._end is not None:
            return
        if self.config is None:
            self.exit(128 + number)
        elif number == SIGKILL:
            self.exit(128 + SIGKILL)
        elif self._script.stop_code is not None:
            self.exit(self._script.stop_code)
        elif self._killer is None:
            self._killer = asyncio.get_running_loop().create_task(self._kill_after(grace_s))

    async def _kill_after(self, grace_s: float) -> None:
        await self._sleep(grace_s)
        self.exit(128 + SIGKILL)

    def _finish(self, end: GuestExited | GuestFailed) -> None:
        if self._end is None:
            self._end = end
            self._tell(end)
            self._off.set()

    def _tell(self, event: GuestEvent) -> None:
        if self._channel is not None:
            self._channel.hear(event)

    def _say_hello(self) -> None:
        offset = self._unacknowledged[0].offset if self._unacknowledged else self._next_offset
        self._tell(GuestHello(self.config is not None, offset, self.held))
        if self.config is not None and not isinstance(self._end, GuestFailed):
            self._tell(GuestReady())
        for output in self._unacknowledged:
            self._tell(output)
        if self._end is not None:
            self._tell(self._end)


def _end_of(output: GuestOutput) -> int:
    return output.offset + len(output.data)


class MemoryWorkload:
    """The way into the workload. Implements `InputSession`; what is not its output is kept for a test to see."""

    def __init__(self, guest: MemoryGuest) -> None:
        self._guest = guest
        self.sizes: list[TerminalSize] = []
        self.ended = False
        self.signals: list[int] = []

    async def send(self, data: bytes) -> None:
        """Write to its stdin."""
        self._guest.hear_input(data)

    async def send_eof(self) -> None:
        """Close its stdin."""
        self.ended = True
        self._guest.hear_eof()

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal."""
        self.sizes.append(size)

    async def signal(self, number: int) -> None:
        """It dies of it, unless it is deaf."""
        self.signals.append(number)
        self._guest.hear_signal(number)


class MemoryGuestChannel:
    """A channel to a `MemoryGuest`. Implements `GuestChannel`."""

    def __init__(self, guest: MemoryGuest) -> None:
        self._guest = guest
        self._heard: deque[GuestEvent] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._sessions: list[MemoryExecSession] = []

    def hear(self, event: GuestEvent) -> None:
        """The guest says something."""
        if not self._ended:
            self._heard.append(event)
            self._changed.set()

    def end(self) -> None:
        """The other side is gone."""
        self._ended = True
        self._changed.set()
        for session in self._sessions:
            session.cut()

    def _check_open(self) -> None:
        if self._ended:
            raise GuestError("guest-gone", "the guest's channel ended")

    async def configure(self, config: GuestConfig) -> None:
        """Send the configuration, once."""
        self._check_open()
        self._guest.configure(config)

    def events(self) -> AsyncIterator[GuestEvent]:
        """What the guest says, in order, until the channel ends."""
        return Events(self.next_event)

    async def next_event(self) -> GuestEvent:
        """The next of `events`."""
        while not self._heard:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._heard.popleft()

    async def acknowledge(self, offset: int) -> None:
        """Output before `offset` is safe."""
        if not self._ended:
            self._guest.acknowledge(offset)

    async def exec(self, spec: ExecSpec) -> MemoryExecSession:
        """Start one of the commands that a pretended guest knows."""
        self._check_open()
        encode_exec(spec)
        if self._guest.config is None:
            raise GuestError("exec-not-ready", "the VM has no configuration yet")
        self._sessions = [session for session in self._sessions if not session.ended]
        if len(self._sessions) >= MAX_COMMANDS:
            raise GuestError("exec-too-many", f"{MAX_COMMANDS} commands run in this VM already")
        session = MemoryExecSession(spec)
        self._guest.commands.append(spec)
        self._sessions.append(session)
        return session

    async def freeze(self) -> None:
        """Hold the workload."""
        self._check_open()
        self._guest.freeze()

    async def thaw(self, card: GuestCard) -> None:
        """Let it go on."""
        self._check_open()
        self._guest.thaw(card)

    async def freeze_volume(self, disk: int) -> None:
        """Let nobody write to a volume."""
        self._check_open()
        self._guest.order("freeze", disk)

    async def thaw_volume(self, disk: int) -> None:
        """Let go on who wants to write."""
        self._check_open()
        self._guest.order("thaw", disk)

    async def grow_volume(self, disk: int, size_bytes: int) -> None:
        """Grow its file system."""
        self._check_open()
        self._guest.order("grow", disk, size_bytes)

    @property
    def workload(self) -> MemoryWorkload:
        """Its stdin, terminal and signals."""
        return self._guest.workload

    async def copy_in(self, target: CopyTarget) -> MemoryCopy:
        """Take in a tree; only `/missing` is no place for one."""
        self._check_open()
        encode_copy_in(target)
        if target.path.startswith("/missing/"):
            raise GuestError("exec-no-such-directory", "/missing: No such file or directory in the VM")
        return MemoryCopy(self._guest.copied, target.path, None)

    async def copy_out(self, path: str) -> MemoryCopy:
        """Give out a tree that was taken in."""
        self._check_open()
        encode_copy_out(path)
        if path not in self._guest.copied:
            raise GuestError("exec-no-such-path", f"{path}: No such file or directory in the VM")
        return MemoryCopy(self._guest.copied, path, self._guest.copied[path])

    async def stop(self, signal: str, grace_s: float) -> None:
        """The signal now, SIGKILL after `grace_s`."""
        self._check_open()
        self._guest.stop(signal_number(signal), grace_s)

    async def aclose(self) -> None:
        """Close the host's side; the guest goes on."""
        self.end()
