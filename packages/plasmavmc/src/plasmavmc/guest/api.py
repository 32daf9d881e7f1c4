"""What the host says to a guest's init and hears from it, apart from how it travels.

`GuestChannel` is what the manager holds per VM; `guest.channel` is the real one (frames over a unix socket),
`guest.memory` a fake. Everything heard is hostile: bounded in size and count, decoded defensively.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, runtime_checkable

from plasmavmc.types import CopyTarget, ExecSpec, FileSpec, Lease, LogStream, Stdio, TerminalSize


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """eth0 of the guest: a /32 with an on-link gateway; and on the private network a /128 with a way to its /48."""

    ipv4: IPv4Address
    gateway: IPv4Address
    nameservers: tuple[str, ...] = ()
    mac: str = ""
    """The one that the host lets in; empty: what the interface has."""
    ipv6: IPv6Address | None = None
    gateway_mac: str = ""
    """Of the host, which answers no question for it by IPv6; given with `ipv6`."""

    @classmethod
    def of(cls, lease: Lease, nameservers: tuple[str, ...]) -> GuestNetwork:
        """What a guest has to know of its place."""
        return cls(lease.ipv4, lease.gateway, nameservers, lease.mac, lease.ipv6, lease.gateway_mac)


@dataclass(frozen=True, slots=True)
class GuestVolume:
    """A disk with a file system of its own, and where it is mounted."""

    disk: int
    """Place among the VM's disks, from 0."""
    destination: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """All that a booting guest must know; sent once over the channel, never by the kernel command line."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str = ""
    """As in an image: `user`, `uid`, `user:group`, `uid:gid`; names are looked up in the guest's own /etc/passwd."""
    workdir: str = "/"
    hostname: str = "vm"
    network: GuestNetwork | None = None
    files: tuple[FileSpec, ...] = field(default=(), repr=False)
    entropy: bytes = b""
    unix_time_ns: int = 0
    stdio: Stdio = Stdio.LOGGED
    terminal_size: TerminalSize = field(default_factory=TerminalSize)
    """Of the workload's terminal at its start, where it has one."""
    volumes: tuple[GuestVolume, ...] = ()
    """In the order of mounting."""


@dataclass(frozen=True, slots=True)
class GuestCard:
    """What no two guests may share, told to a guest that was held before anything of the user's runs on: always the
    time and fresh entropy; where it was restored its generation and its place in the network; where it is a copy, the
    rest."""

    unix_time_ns: int
    entropy: bytes
    generation: int = 0
    """How often this VM was restored; 0 for one that only goes on."""
    hostname: str = ""
    """Empty: as before."""
    network: GuestNetwork | None = None
    """None: as before."""
    machine_id: bytes = b""
    """16 bytes for /etc/machine-id; empty: as before."""


@dataclass(frozen=True, slots=True)
class GuestHello:
    """The guest's init is up and waits for its configuration, or was resynchronised (`configured`)."""

    configured: bool
    log_offset: int
    held: bool = False
    """Its workload stands still, and waits for `thaw`."""


@dataclass(frozen=True, slots=True)
class GuestReady:
    """The workload's process exists."""


@dataclass(frozen=True, slots=True)
class GuestFailed:
    """The workload could not be started: no such command, no such user, disk not mountable."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class GuestExited:
    """The workload ended; the VM is about to power off."""

    exit_code: int
    """128 + signal for a death by signal, as a shell has it."""
    oom: bool = False


@dataclass(frozen=True, slots=True)
class GuestOutput:
    """Bytes that the workload wrote. `offset` counts all bytes of both streams; a gap was dropped by the guest."""

    stream: LogStream
    offset: int
    data: bytes


NOT_EXECUTED = {"no-such-command": 127, "not-executable": 126}
"""Exit codes, as shells have them (POSIX.1-2024, Shell, 2.8.2), by the code with which a guest says that it cannot execute
what it was told to run."""

GuestEvent = GuestHello | GuestReady | GuestFailed | GuestExited | GuestOutput


@dataclass(frozen=True, slots=True)
class ExecOutput:
    stream: LogStream
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecExit:
    code: int


class InputSession(Protocol):
    """The way into a process of the guest."""

    async def send(self, data: bytes) -> None:
        """Write to its stdin; waits for room."""

    async def send_eof(self) -> None:
        """Close its stdin."""

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its pty."""

    async def signal(self, number: int) -> None:
        """Send a signal to its process group (to the workload's process alone)."""


class ExecSession(InputSession, Protocol):
    """A command running in the guest. A reader that stalls stops only its own stream."""

    def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        """What it writes, and last its exit code. Raises `GuestError` where the guest went away first."""

    async def aclose(self) -> None:
        """Let it go: the command is hung up (SIGHUP), then killed."""


class GuestChannel(Protocol):
    """One guest's channel. Survives a restart of the host's side by resynchronising."""

    async def configure(self, config: GuestConfig) -> None:
        """Send the configuration once, after `GuestHello(configured=False)`."""

    def events(self) -> AsyncIterator[GuestEvent]:
        """What the guest says, in order, until the channel ends (end of iteration). One consumer."""

    async def acknowledge(self, offset: int) -> None:
        """Output before `offset` is safe on the host; the guest may drop it from its ring."""

    async def exec(self, spec: ExecSpec) -> ExecSession:
        """Start a command. One that cannot be executed says so on stderr and ends as in a shell (`NOT_EXECUTED`).
        `GuestError` (`exec-…`) where the guest refuses for another reason: no such user, too many."""

    async def stop(self, signal: str, grace_s: float) -> None:
        """Ask for a graceful end: the signal now, SIGKILL after `grace_s`; then `GuestExited` follows."""

    async def freeze(self) -> None:
        """Hold every process of the guest but its init, with nothing unwritten. `GuestError` (`freeze-…`) where it
        cannot; then it runs on. A guest that was held and has lost its host runs on by itself after a while."""

    async def thaw(self, card: GuestCard) -> None:
        """Let a held guest run on as the card says. `GuestError` (`thaw-…`) where it cannot become that: it stays
        held."""

    async def aclose(self) -> None:
        """Close the host's side; the guest goes on."""


@runtime_checkable
class AttachableChannel(Protocol):
    """The ability of a channel to reach the workload itself; what it writes is heard as `GuestOutput`."""

    @property
    def workload(self) -> InputSession:
        """Its stdin, terminal and signals. What `GuestConfig.stdio` does not open takes nothing."""


@runtime_checkable
class CopyingChannel(Protocol):
    """The ability of a channel to copy files. Either way a tar stream of one tree goes through a session: its exit code
    says whether all went well, and its stderr why not."""

    async def copy_in(self, target: CopyTarget) -> ExecSession:
        """Take in a tree by the session's stdin. `GuestError` (`exec-…`) where it has no place to go."""

    async def copy_out(self, path: str) -> ExecSession:
        """Give out a tree by the session's stdout. `GuestError` (`exec-no-such-path`)."""


@runtime_checkable
class VolumeChannel(Protocol):
    """The ability of a channel to have something done to a volume of a running guest, by its place among the disks.
    `GuestError` (`volume-…`) where the guest could not."""

    async def freeze_volume(self, disk: int) -> None:
        """Bring to the disk what was written, and let nobody write until it is thawed: by us, or by the guest itself after
        a while."""

    async def thaw_volume(self, disk: int) -> None:
        """Let go on who wants to write. `volume-not-frozen`: it had to be thawed before."""

    async def grow_volume(self, disk: int, size_bytes: int) -> None:
        """Grow the file system to its disk, which has this size now."""
