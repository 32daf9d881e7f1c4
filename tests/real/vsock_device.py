"""A virtio-vsock for a QEMU guest whose host side is that of Firecracker: a unix socket that is told `CONNECT <port>`.

Theory. QEMU hands the device out (vhost-user): it connects to a socket of ours, passes the guest's memory and, for each of
the two queues that carry packets, two eventfds. The driver in the guest cannot tell; so a Linux guest, its modules and its
init are met here as they would be on Firecracker, on hosts whose kernel has no vhost-vsock. Firecracker's own device is not.

Sources: QEMU, docs/interop/vhost-user.rst; VIRTIO 1.2, 2.7 (split queues) and 5.10 (socket device).
"""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

GUEST_CID, HOST_CID = 3, 2
FIRST_PORT = 1 << 30
BUFFER = 256 * 1024
LARGEST = 4096
_VERSION_1, _PROTOCOL_FEATURES, _CONFIG = 1 << 32, 1 << 30, 1 << 9
_RX, _TX = 0, 1
_HEADER = struct.Struct("<QQIIIHHIII")
_STREAM = 1
_REQUEST, _RESPONSE, _RST, _SHUTDOWN, _RW, _CREDIT_UPDATE, _CREDIT_REQUEST = range(1, 8)


@dataclass(frozen=True)
class Region:
    """A piece of the guest's memory."""

    guest: int
    size: int
    user: int
    offset: int
    mapped: mmap.mmap

    def view(self, at: int, length: int) -> memoryview:
        start = self.offset + at
        return memoryview(self.mapped)[start : start + length]


@dataclass
class Ring:
    """A split queue, as the device sees it."""

    regions: list[Region]
    size: int = 0
    descriptors: int = 0
    available: int = 0
    used: int = 0
    taken: int = 0
    kick: int = -1
    call: int = -1

    def take(self) -> tuple[int, list[tuple[memoryview, bool]]] | None:
        """The next chain of the driver's: its number, and its buffers with whether we write to them."""
        if self.kick < 0 or self._u16(self.available + 2) == self.taken:
            return None
        head = index = self._u16(self.available + 4 + 2 * (self.taken % self.size))
        self.taken = (self.taken + 1) & 0xFFFF
        buffers = []
        while True:
            address, length, flags, following = struct.unpack("<QIHH", self._user(self.descriptors + 16 * index, 16))
            buffers.append((self._guest(address, length), bool(flags & 2)))
            if not flags & 1:
                return head, buffers
            index = following

    def give_back(self, head: int, written: int) -> None:
        index = self._u16(self.used + 2)
        self._user(self.used + 4 + 8 * (index % self.size), 8)[:] = struct.pack("<II", head, written)
        self._user(self.used + 2, 2)[:] = struct.pack("<H", (index + 1) & 0xFFFF)
        if not self._u16(self.available) & 1 and self.call >= 0:
            os.eventfd_write(self.call, 1)

    def _u16(self, address: int) -> int:
        return int.from_bytes(self._user(address, 2), "little")

    def _user(self, address: int, length: int) -> memoryview:
        region = next(each for each in self.regions if each.user <= address < each.user + each.size)
        return region.view(address - region.user, length)

    def _guest(self, address: int, length: int) -> memoryview:
        region = next(each for each in self.regions if each.guest <= address < each.guest + each.size)
        return region.view(address - region.guest, length)


@dataclass
class Connection:
    """One of the host's to the guest."""

    writer: asyncio.StreamWriter
    guest_port: int
    answered: asyncio.Future[bool]
    received: int = 0
    sent: int = 0
    window: int = 0
    acknowledged: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)


class VsockDevice:
    """Serves QEMU at `device` and the host at `uds`, both within `directory`."""

    def __init__(self, directory: Path) -> None:
        self.device = directory / "vsock-device"
        self.uds = directory / "vsock.sock"
        self._regions: list[Region] = []
        self._rings = (Ring(self._regions), Ring(self._regions))
        self._to_guest: deque[bytes] = deque()
        self._connections: dict[int, Connection] = {}
        self._descriptors: list[int] = []
        self._next_port = FIRST_PORT

    # QEMU's side

    async def serve_qemu(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        peer, _ = await loop.sock_accept(listener)
        with peer:
            peer.setblocking(True)
            while True:
                await _readable(peer)
                if not self._message(peer):
                    return

    def _message(self, peer: socket.socket) -> bool:
        room = socket.CMSG_SPACE(8 * 4)
        head, extras, _, _ = peer.recvmsg(12, room, socket.MSG_CMSG_CLOEXEC)
        if len(head) < 12:
            return False
        kind, _, size = struct.unpack("<III", head)
        body = peer.recv(size, socket.MSG_WAITALL) if size else b""
        fds = array.array("i")
        for _, _, content in extras:
            fds.frombytes(content)
        self._descriptors += fds
        answer = self._answer(kind, body, list(fds))
        if answer is not None:
            peer.sendall(struct.pack("<III", kind, 5, len(answer)) + answer)
        return True

    def _answer(self, kind: int, body: bytes, fds: list[int]) -> bytes | None:
        match kind:
            case 1:
                return struct.pack("<Q", _VERSION_1 | _PROTOCOL_FEATURES)
            case 15:
                return struct.pack("<Q", _CONFIG)
            case 24:
                offset, size, flags = struct.unpack("<III", body[:12])
                return struct.pack("<III", offset, size, flags) + struct.pack("<Q", GUEST_CID)[offset:].ljust(
                    size, b"\0"
                )
            case 5:
                self._map(body, fds)
            case 8 | 10:
                index, value = struct.unpack("<II", body)
                setattr(self._rings[index], "size" if kind == 8 else "taken", value)
            case 9:
                index, _, descriptors, used, available, _ = struct.unpack("<IIQQQQ", body)
                ring = self._rings[index]
                ring.descriptors, ring.used, ring.available = descriptors, used, available
            case 11:
                index = body[0]
                self._stop(self._rings[index])
                return struct.pack("<II", index, self._rings[index].taken)
            case 12:
                self._kicks(body[0], fds[0])
            case 13:
                self._rings[body[0]].call = fds[0]
        return None

    def _map(self, body: bytes, fds: list[int]) -> None:
        self._regions.clear()
        for number, fd in enumerate(fds):
            guest, size, user, offset = struct.unpack_from("<QQQQ", body, 8 + 32 * number)
            self._regions.append(Region(guest, size, user, offset, mmap.mmap(fd, size + offset)))

    def _kicks(self, index: int, fd: int) -> None:
        ring = self._rings[index]
        self._stop(ring)
        ring.kick = fd
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._kicked, fd)

    @staticmethod
    def _stop(ring: Ring) -> None:
        if ring.kick >= 0:
            asyncio.get_running_loop().remove_reader(ring.kick)
        ring.kick = -1

    def _kicked(self, fd: int) -> None:
        os.eventfd_read(fd)
        while chain := self._rings[_TX].take():
            head, buffers = chain
            packet = b"".join(bytes(view) for view, _ in buffers)
            self._rings[_TX].give_back(head, 0)
            self._from_guest(packet)
        self._flush()

    def _flush(self) -> None:
        ring = self._rings[_RX]
        while self._to_guest and (chain := ring.take()):
            head, buffers = chain
            packet, rest = _cut(self._to_guest.popleft(), sum(len(view) for view, _ in buffers))
            if rest:
                self._to_guest.appendleft(rest)
            left = packet
            for view, _ in buffers:
                piece, left = left[: len(view)], left[len(view) :]
                view[: len(piece)] = piece
            ring.give_back(head, len(packet))

    # Packets

    def _send(self, port: int, guest_port: int, operation: int, data: bytes = b"", flags: int = 0) -> None:
        received = self._connections[port].received if port in self._connections else 0
        ends = (HOST_CID, GUEST_CID, port, guest_port)
        header = _HEADER.pack(*ends, len(data), _STREAM, operation, flags, BUFFER, received & 0xFFFFFFFF)
        self._to_guest.append(header + data)
        self._flush()

    def _from_guest(self, packet: bytes) -> None:
        _, _, guest_port, port, length, _, operation, _, window, acknowledged = _HEADER.unpack_from(packet)
        connection = self._connections.get(port)
        if connection is None or connection.guest_port != guest_port:
            if operation != _RST:
                self._send(port, guest_port, _RST)
            return
        connection.window, connection.acknowledged = window, acknowledged
        connection.room.set()
        match operation:
            case 2 if not connection.answered.done():
                connection.answered.set_result(True)
            case 5:
                connection.writer.write(packet[_HEADER.size : _HEADER.size + length])
                connection.received += length
                self._send(port, guest_port, _CREDIT_UPDATE)
            case 7:
                self._send(port, guest_port, _CREDIT_UPDATE)
            case 3 | 4:
                del self._connections[port]
                if operation == _SHUTDOWN:
                    self._send(port, guest_port, _RST)
                if not connection.answered.done():
                    connection.answered.set_result(False)
                connection.writer.close()
                connection.room.set()

    # The host's side

    async def serve_host(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        port = self._next_port
        self._next_port += 1
        guest_port = int(line.removeprefix(b"CONNECT "))
        connection = Connection(writer, guest_port, asyncio.get_running_loop().create_future())
        self._connections[port] = connection
        self._send(port, guest_port, _REQUEST)
        try:
            if await connection.answered:
                writer.write(b"OK %d\n" % port)
                await self._pump(reader, port, connection)
        finally:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, port: int, connection: Connection) -> None:
        while port in self._connections:
            connection.room.clear()
            room = connection.window - ((connection.sent - connection.acknowledged) & 0xFFFFFFFF)
            if room <= 0:
                await connection.room.wait()
                continue
            data = await reader.read(min(room, LARGEST))
            if port not in self._connections:
                return
            if not data:
                self._send(port, connection.guest_port, _SHUTDOWN, flags=3)
                del self._connections[port]
                return
            connection.sent += len(data)
            self._send(port, connection.guest_port, _RW, data)

    def close(self) -> None:
        for ring in self._rings:
            self._stop(ring)
        for fd in self._descriptors:
            os.close(fd)


def _cut(packet: bytes, room: int) -> tuple[bytes, bytes]:
    """A packet that fits the guest's buffer, and another with what does not: how large those are is the driver's to say."""
    if len(packet) <= room:
        return packet, b""
    fields = list(_HEADER.unpack_from(packet))
    data, both = packet[_HEADER.size :], []
    for piece in (data[: room - _HEADER.size], data[room - _HEADER.size :]):
        fields[4] = len(piece)
        both.append(_HEADER.pack(*fields) + piece)
    return both[0], both[1]


async def _readable(peer: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(peer, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(peer)


@asynccontextmanager
async def vsock_device(directory: Path) -> AsyncIterator[VsockDevice]:
    """The device, for one QEMU that is started within the block."""
    made = VsockDevice(directory)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(made.device))
        listener.listen(1)
        serving = asyncio.create_task(made.serve_qemu(listener))
        server = await asyncio.start_unix_server(made.serve_host, made.uds)
        try:
            yield made
        finally:
            server.close()
            serving.cancel()
            await asyncio.wait({serving})
            made.close()


def qemu_options(device: VsockDevice, memory_mib: int) -> Iterator[str]:
    """What QEMU is told of the device: it must share the guest's memory."""
    yield from ("-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on")
    yield from ("-global", "virtio-mmio.force-legacy=false")
    yield from ("-chardev", f"socket,id=v0,path={device.device}", "-device", "vhost-user-vsock-device,chardev=v0")
