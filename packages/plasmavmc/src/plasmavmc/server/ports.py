"""Published ports: TCP ports of this host that lead to VMs.

Theory. The server itself listens, and splices each connection to the VM's address: nothing of it is in the kernel's
tables, so nothing of it can stay behind, and a listener's death is the server's (docs/adr/0006). A port is bound when its
VM is created, so that one that is taken is told at once, and is the VM's until that has ended, or its restart has failed;
who connects before the workload runs, or to a port that nobody listens on in the VM, is hung up on.

A half-closed connection stays half open, as clients of old protocols want. Bytes wait nowhere but in the sockets'
buffers and one chunk each way. A connection that says nothing is kept: the kernel's keep-alive finds peers that are gone.

Who connects is a stranger, and each connection takes two descriptors of the server. So all ports together have half of its
descriptors, and one VM a quarter of these; beyond it who connects is hung up on. The rest is the server's own.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from plasmavmc.deadlines import within
from plasmavmc.errors import CapacityError, ConflictError, HostError
from plasmavmc.host.descriptors import descriptor_limit
from plasmavmc.states import ENDED
from plasmavmc.types import PublishedPort, Vm

CONNECT_S = 10.0
MAX_CONNECTIONS = 1024
"""At once, over all ports of one VM, however many descriptors there are."""
_SHARE_OF_ALL, _SHARE_OF_ONE = 2, 4
_PER_LISTENER, _PER_CONNECTION = 1, 2
"""Descriptors."""
_CHUNK = 64 * 1024
_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1
"""After an accept that failed: no descriptors are left, or no memory."""
_WARN_EVERY_S = 60.0

log = structlog.get_logger("plasmavmc.ports")


@dataclass(slots=True)
class _Published:
    """The ports of one VM."""

    most: int
    """Descriptors that its ports and their connections may have."""
    target: IPv4Address | Path | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    listening: frozenset[asyncio.Task[None]] = frozenset()
    """Those that take connections; each other one carries one."""
    kept: bool = False
    """They are not given back, though the VM has ended: it is being restarted."""
    taken: int = 0
    """Descriptors."""

    def close(self) -> None:
        """Each task's socket is closed as it ends: a number that the loop still watches is not given away before."""
        for task in self.tasks:
            task.cancel()

    def hang_up(self) -> None:
        """Lead nowhere: connections are cut, and the ports stay."""
        self.target = None
        for task in self.tasks - self.listening:
            task.cancel()


class PublishedPorts:
    """See the module's head. `follow` is told of every change of VMs. `limit`: the descriptors of this process; None: asked
    of the kernel."""

    def __init__(self, limit: int | None = None) -> None:
        self._by_vm: dict[str, _Published] = {}
        self._left = (descriptor_limit() if limit is None else limit) // _SHARE_OF_ALL
        self._most = min(MAX_CONNECTIONS * _PER_CONNECTION, self._left // _SHARE_OF_ONE)
        self._warned = -_WARN_EVERY_S

    def open(self, vm_id: str, ports: Iterable[PublishedPort]) -> None:
        """Take the ports of a VM, all or none. Again for the same VM changes nothing.

        Raises:
            ConflictError: `port-taken`.
            HostError: `port-forbidden`, `no-such-address`, or the host's words.
            CapacityError: no descriptors are left.
        """
        wanted = tuple(ports)
        if not wanted or vm_id in self._by_vm:
            return
        if len(wanted) * _PER_LISTENER > self._left:
            raise _no_descriptors(wanted[0])
        with ExitStack() as undo:
            listeners = [(port, undo.enter_context(_listen(port))) for port in wanted]
            undo.pop_all()
        published = self._by_vm[vm_id] = _Published(self._most + len(wanted) * _PER_LISTENER)
        for port, listener in listeners:
            self._spawn(published, self._accept(published, port, listener), listener, _PER_LISTENER)
        published.listening = frozenset(published.tasks)

    @contextmanager
    def keeping(self, vm_id: str) -> Iterator[None]:
        """For the block they stay the VM's though it ends, and leads nowhere: it is restarted, and nobody may take its ports
        meanwhile."""
        published = self._by_vm.get(vm_id)
        if published is not None:
            published.kept = True
        try:
            yield
        finally:
            if published is not None:
                published.kept = False

    def close(self, vm_id: str) -> None:
        """Give them back; connections are cut."""
        published = self._by_vm.pop(vm_id, None)
        if published is not None:
            published.close()

    def follow(self, vms: Iterable[Vm]) -> None:
        """What VMs there are, and how they are: where ports lead to, and which are given back."""
        present = {vm.spec.id: vm for vm in vms}
        for vm_id, published in list(self._by_vm.items()):
            vm = present.get(vm_id)
            if vm is not None and vm.status.state not in ENDED:
                published.target = _address(vm)
            elif published.kept:
                published.hang_up()
            else:
                self.close(vm_id)

    def adopt(self, vms: Iterable[Vm]) -> None:
        """Take the ports of VMs that live, as after a restart of the server; one that is taken now is told in the log."""
        for vm in vms:
            if vm.status.state not in ENDED:
                try:
                    self.open(vm.spec.id, vm.spec.published)
                except (ConflictError, HostError, CapacityError) as error:
                    log.error("port.not_published", vm=vm.spec.id, error=str(error))

    def aclose(self) -> None:
        """Give back all."""
        for vm_id in list(self._by_vm):
            self.close(vm_id)

    def _spawn(
        self, published: _Published, work: Coroutine[None, None, None], owned: socket.socket, descriptors: int
    ) -> None:
        """A task and the socket that ends with it, also where it never came to begin."""
        task = asyncio.create_task(work, name="published port")

        def ended(_: asyncio.Task[None]) -> None:
            owned.close()
            published.tasks.discard(task)
            published.taken -= descriptors
            self._left += descriptors

        published.tasks.add(task)
        published.taken += descriptors
        self._left -= descriptors
        task.add_done_callback(ended)

    async def _accept(self, published: _Published, port: PublishedPort, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # an accept that finds somebody waiting lets nobody else go on
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._warn(f"port {port.host_port} takes no connection: {error.strerror}")
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if published.target is None:
                client.close()
            elif self._has_room(published):
                self._spawn(published, _serve(client, published.target, port.guest_port), client, _PER_CONNECTION)
            else:
                client.close()
                self._warn(f"port {port.host_port} has no room for more connections")

    def _has_room(self, published: _Published) -> bool:
        return self._left >= _PER_CONNECTION and published.taken + _PER_CONNECTION <= published.most

    def _warn(self, words: str) -> None:
        """Into the log, from time to time: whoever connects could fill it."""
        now = time.monotonic()
        if now >= self._warned + _WARN_EVERY_S:
            self._warned = now
            log.warning("ports.refused", reason=words)


def _listen(port: PublishedPort) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port cannot be taken again for a minute
        listener.bind((str(port.address), port.host_port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _refusal(port, error) from error
    return listener


def _refusal(port: PublishedPort, error: OSError) -> ConflictError | HostError | CapacityError:
    where = f"{port.address}:{port.host_port}"
    match error.errno:
        case errno.EADDRINUSE:
            return ConflictError("port-taken", f"{where} is in use on the host", resolution="Choose another port.")
        case errno.EACCES | errno.EPERM:
            return HostError(
                "port-forbidden",
                f"{where} may not be opened: the server runs without root, and ports below 1024 are root's",
                resolution="Choose a port of 1024 or above.",
            )
        case errno.EADDRNOTAVAIL:
            return HostError(
                "no-such-address", f"{port.address} is no address of the host", resolution="Use 127.0.0.1 or 0.0.0.0."
            )
        case errno.EMFILE | errno.ENFILE:
            return _no_descriptors(port)
        case _:
            return HostError("port", f"{where} cannot be opened: {error.strerror}")


def _no_descriptors(port: PublishedPort) -> CapacityError:
    return CapacityError(
        "no-descriptors",
        f"{port.address}:{port.host_port}: no descriptors are left for published ports",
        resolution="Publish fewer, or raise the server's limit: LimitNOFILE in its unit, or ulimit -Hn.",
    )


def _address(vm: Vm) -> IPv4Address | Path | None:
    """Where a VM can be reached, by its address or its socket; None before it runs."""
    for endpoint in vm.status.endpoints:
        kind, _, address = endpoint.partition(":")
        if kind == "tcp":
            return IPv4Address(address)
        if kind == "unix":
            return Path(address)
    return None


async def _serve(client: socket.socket, target: IPv4Address | Path, port: int) -> None:
    """One connection, to its end."""
    loop = asyncio.get_running_loop()
    family = socket.AF_UNIX if isinstance(target, Path) else socket.AF_INET
    with suppress(OSError, TimeoutError), socket.socket(family, socket.SOCK_STREAM) as guest:
        for end in (client, guest):
            end.setblocking(False)
            if end.family is socket.AF_INET:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with within(CONNECT_S):
            await loop.sock_connect(guest, str(target) if isinstance(target, Path) else (str(target), port))
        await _splice(client, guest)


async def _splice(one: socket.socket, other: socket.socket) -> None:
    """Both ways; an error of either ends both."""
    ways = [asyncio.create_task(_carry(one, other)), asyncio.create_task(_carry(other, one))]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _CHUNK):
        await loop.sock_sendall(sink, data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
