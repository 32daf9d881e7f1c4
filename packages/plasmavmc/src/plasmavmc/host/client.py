"""The unprivileged end of the helper's socket: `Host` and `Jails` over messages.

Theory. The helper does one request at a time, so a lock keeps ours in order; each exchange is a task of its own that is
never cut in the middle: a caller that is cancelled leaves it to finish, and what came back for nobody is given up (a
descriptor closed, a VMM killed). At the end of the connection every waiting and later call is an `UnavailableError`.
"""

from __future__ import annotations

import asyncio
import os
import signal as signals
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

from plasmavmc.deadlines import within
from plasmavmc.errors import HostError, PlasmaError, UnavailableError
from plasmavmc.host import protocol
from plasmavmc.host.operations import (
    KILL_DEADLINE_S,
    Bridge,
    Guarding,
    Keep,
    Limits,
    Peer,
    ProcessId,
    Reach,
    Routed,
    RuleSet,
    Spawned,
    Swept,
    TapRequest,
    UnendedError,
)
from plasmavmc.host.zfs import ZfsOrder
from plasmavmc.types import NetworkUsage

T = TypeVar("T")
REPLY_DEADLINE_S = 60.0
"""Each operation has bounds of its own below this, for all of its steps together; beyond, the helper hangs."""


@dataclass(frozen=True, slots=True)
class _Exchanged:
    reply: protocol.Reply
    fds: tuple[int, ...]


class HelperHost:
    """`Host` of this installation, by the root helper. Made and used inside a running event loop."""

    def __init__(self, fd: int) -> None:
        """`fd` is what `split` returned; it belongs to this object from now on."""
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._assembler = protocol.Assembler()
        self._waiting: asyncio.Future[protocol.Message] | None = None
        self._exchanges: set[asyncio.Task[_Exchanged]] = set()
        self._gone = asyncio.Event()
        self._rules: RuleSet | None = None
        """Those in force; None where that is not known."""
        self._loop.add_reader(self._socket, self._on_readable)

    async def wait_gone(self) -> None:
        """Return when the helper has ended; the platform must then end too."""
        await self._gone.wait()

    def close(self) -> None:
        """Give up the connection: the helper ends. VMs stay."""
        if not self._gone.is_set():
            self._hang_up("the connection to the root helper was closed")

    # Host

    async def bridge_ensure(self, bridge: Bridge) -> str:
        return await self._value(protocol.BridgeEnsure(bridge), str)

    async def rules_apply(self, rules: RuleSet) -> None:
        change = changed_members(self._rules, rules)
        self._rules = None  # should it fail, the next ones are told whole
        await self._call(protocol.RulesApply(rules) if change is None else change)
        self._rules = rules

    async def rules_fault(self) -> str:
        return await self._value(protocol.RulesFault(), str)

    async def routes_apply(self, peers: Sequence[Peer], reach: Reach) -> Routed:
        return await self._value(protocol.RoutesApply(tuple(peers), reach), Routed)

    async def networks_in_use(self) -> tuple[IPv4Network, ...]:
        return await self._value(protocol.NetworksInUse(), tuple[IPv4Network, ...])

    async def tap_open(self, tap: TapRequest) -> int:
        return _only_fd(await self._call(protocol.TapOpen(tap)))

    async def tap_make(self) -> bool:
        return await self._value(protocol.TapMake(), bool)

    async def tap_forget(self, name: str) -> None:
        await self._call(protocol.TapForget(name))

    async def limits_lack(self) -> str:
        return await self._value(protocol.LimitsLack(), str)

    async def taps_guarding(self) -> Guarding:
        return await self._value(protocol.TapsGuarding(), Guarding)

    async def taps_usage(self, names: Collection[str]) -> Mapping[str, NetworkUsage]:
        return await self._value(protocol.TapsUsage(tuple(names)), dict[str, NetworkUsage])

    async def uid_take(self, key: str, *, seat: bool = False) -> int:
        return await self._value(protocol.UidTake(key, seat), int)

    async def uid_free(self, key: str) -> None:
        await self._call(protocol.UidFree(key))

    async def seat_make(self, *, kvm: bool) -> None:
        await self._call(protocol.SeatMake(kvm))

    async def vm_spawn(self, key: str, argv: Sequence[str], limits: Limits, fds: Mapping[str, int]) -> Spawned:
        return await self._spawn(key, protocol.VmSpawn(key, tuple(argv), limits, tuple(fds)), tuple(fds.values()))

    async def _spawn(self, key: str, request: protocol.Request, fds: tuple[int, ...]) -> Spawned:
        exchange = self._begin(request, fds)
        try:
            return _spawned(await asyncio.shield(exchange))
        except asyncio.CancelledError:
            await self._undo_spawn(key, exchange)
            raise

    async def vm_limit(self, key: str, limits: Limits) -> None:
        await self._call(protocol.VmLimit(key, limits))

    async def vm_signal(self, key: str, process: ProcessId, signal: int) -> bool:
        return await self._value(protocol.VmSignal(key, process, signal), bool)

    async def vm_memory(self, key: str, process: ProcessId) -> int:
        return _only_fd(await self._call(protocol.VmMemory(key, process)))

    async def vm_reap(self, key: str, process: ProcessId) -> int | None:
        reply = (await self._call(protocol.VmReap(key, process))).reply
        return protocol.decode(reply.value, int | None)  # type: ignore[arg-type] # a union is no type[T] to mypy

    async def vm_fence(self, key: str, until: float | None) -> None:
        await self._call(protocol.VmFence(key, until))

    async def jail_prepare(self, key: str, files: Mapping[str, int]) -> int:
        return _only_fd(await self._call(protocol.JailPrepare(key, tuple(files)), tuple(files.values())))

    async def jail_open(self, key: str) -> int:
        return _only_fd(await self._call(protocol.JailOpen(key)))

    async def jail_spawn(self, key: str, limits: Limits, tap: TapRequest | None = None) -> Spawned:
        return await self._spawn(key, protocol.JailSpawn(key, limits, tap), ())

    async def jail_remove(self, key: str) -> None:
        await self._call(protocol.JailRemove(key))

    async def cgroup_place(self, name: str, process: ProcessId) -> str:
        return await self._value(protocol.CgroupPlace(name, process), str)

    async def listen(self, address: str, port: int) -> int:
        return _only_fd(await self._call(protocol.Listen(address, port)))

    async def resolver_sockets(self) -> tuple[int, int]:
        datagrams, connections = (await self._call(protocol.ResolverSockets())).fds
        return datagrams, connections

    async def zfs_open(self) -> Path:
        return Path(await self._value(protocol.ZfsOpen(), str))

    async def zfs_look(self) -> str:
        with os.fdopen(_only_fd(await self._call(protocol.ZfsLook())), "rb") as told:
            return told.read().decode()

    async def zfs_do(self, order: ZfsOrder) -> None:
        await self._call(protocol.ZfsDo(order))

    async def sweep(self, keep: Keep) -> Swept:
        return await self._value(protocol.Sweep(keep), Swept)

    async def dismantle(self) -> None:
        await self._call(protocol.Dismantle())

    # One request and its reply

    async def _value(self, request: protocol.Request, kind: type[T]) -> T:
        return protocol.decode((await self._call(request)).reply.value, kind)

    async def _call(self, request: protocol.Request, fds: tuple[int, ...] = ()) -> _Exchanged:
        exchange = self._begin(request, fds)
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.add_done_callback(_give_up)
            raise

    def _begin(self, request: protocol.Request, fds: tuple[int, ...]) -> asyncio.Task[_Exchanged]:
        """Start an exchange. Descriptors are copied: the caller may close its own while we wait for our turn."""
        copies = tuple(os.dup(fd) for fd in fds)
        exchange = self._loop.create_task(self._exchange(protocol.encode(request), copies))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)
        return exchange

    async def _exchange(self, data: bytes, fds: tuple[int, ...]) -> _Exchanged:
        try:
            async with self._lock:
                message = await self._ask(data, fds)
        finally:
            protocol.close_all(fds)
        reply = protocol.decode(message.data, protocol.Reply)
        if reply.failure is not None:
            protocol.close_all(message.fds)
            raise _error_of(reply.failure)
        return _Exchanged(reply, message.fds)

    async def _ask(self, data: bytes, fds: tuple[int, ...]) -> protocol.Message:
        if self._gone.is_set():
            raise _gone("the root helper has ended")
        self._waiting = self._loop.create_future()
        try:
            async with within(REPLY_DEADLINE_S):
                first, *rest = protocol.packets_of(data)
                await self._send(first, fds)
                for packet in rest:
                    await self._send(packet, ())
                return await self._waiting
        except TimeoutError as error:
            self._waiting = None
            self._hang_up()
            raise _gone("the root helper does not answer") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            self._waiting = None
            self._hang_up()
            raise _gone("the root helper has ended") from error
        finally:
            self._waiting = None

    async def _send(self, packet: bytes, fds: tuple[int, ...]) -> None:
        while True:
            try:
                socket.send_fds(self._socket, [packet], fds)
            except BlockingIOError:
                await self._ready(self._socket.fileno(), self._loop.add_writer, self._loop.remove_writer)
            else:
                return

    @staticmethod
    async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], object]) -> None:
        """Wait until a descriptor can be read or written, by the loop's methods for either."""
        ready = asyncio.Event()
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)

    def _on_readable(self) -> None:
        try:
            packet, fds = protocol.receive_packet(self._socket)
            message = self._assembler.add(packet, fds) if packet else None
        except BlockingIOError:
            return
        except (protocol.ProtocolError, OSError) as error:
            self._hang_up(f"the root helper cannot be understood: {error}")
            return
        if not packet:
            self._hang_up()
        elif message is not None:
            self._deliver(message)

    def _deliver(self, message: protocol.Message) -> None:
        if self._waiting is None or self._waiting.done():
            protocol.close_all(message.fds)
            self._hang_up("the root helper spoke without being asked")
        else:
            self._waiting.set_result(message)

    def _hang_up(self, why: str = "the root helper has ended") -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._assembler.discard()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(_gone(why))

    async def _undo_spawn(self, key: str, exchange: asyncio.Task[_Exchanged]) -> None:
        """End a VMM that was started for a caller that is gone. Raises `UnendedError`."""
        try:
            spawned = _spawned(await asyncio.shield(exchange))
        except PlasmaError:
            return  # there is none
        os.close(spawned.stdout)
        process = ProcessId(spawned.pid, spawned.start_time)
        try:
            await self.vm_signal(key, process, signals.SIGKILL)
            ended = await self._ends(spawned.pidfd)
        except PlasmaError:
            return  # the helper is gone, and the platform ends
        finally:
            os.close(spawned.pidfd)
        if not ended:
            raise UnendedError(process)
        with suppress(PlasmaError):
            await self.vm_reap(key, process)

    async def _ends(self, pidfd: int) -> bool:
        """Whether a process does within `KILL_DEADLINE_S`."""
        try:
            async with within(KILL_DEADLINE_S):
                await self._ready(pidfd, self._loop.add_reader, self._loop.remove_reader)
        except TimeoutError:
            return False
        return True


def _spawned(exchanged: _Exchanged) -> Spawned:
    process = protocol.decode(exchanged.reply.value, protocol.SpawnedProcess)
    pidfd, stdout = exchanged.fds
    return Spawned(process.pid, process.start_time, pidfd, process.confinement, stdout)


def _only_fd(exchanged: _Exchanged) -> int:
    (fd,) = exchanged.fds
    return fd


def _give_up(exchange: asyncio.Task[_Exchanged]) -> None:
    """Close what an exchange brought for a caller that did not wait."""
    if not exchange.cancelled() and exchange.exception() is None:
        protocol.close_all(exchange.result().fds)


def _error_of(failure: protocol.Failure) -> PlasmaError:
    kind = UnavailableError if failure.temporary else HostError
    return kind(failure.code, failure.brief, details=failure.details, resolution=failure.resolution)


def _gone(why: str) -> UnavailableError:
    return UnavailableError("helper-gone", why, resolution="restart the platform; VMs go on running")


def changed_members(before: RuleSet | None, wanted: RuleSet) -> protocol.RulesChange | None:
    """What is told instead of all rules, where members, open ports and VMs of other nodes alone differ from those in force:
    a host may have thousands. None: more does, or nothing is known to be in force."""
    if before is None or _frame(before) != _frame(wanted):
        return None
    old = {member.tap: member for member in before.members}
    added = tuple(each for each in wanted.members if (known := old.get(each.tap)) is not each and known != each)
    gone = old.keys() - {member.tap for member in wanted.members}
    removed = (*sorted(gone), *(member.tap for member in added if member.tap in old))
    ports = None if wanted.ports == before.ports else wanted.ports
    return protocol.RulesChange(added, removed, ports, None if wanted.sources == before.sources else wanted.sources)


def _frame(rules: RuleSet) -> RuleSet:
    """All but what may be many, and often others."""
    return replace(rules, members=(), ports=(), sources=())
