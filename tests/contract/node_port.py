"""A node port on loopback with its clients, and a wire between them that a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from shellwego.api.uplink.bodies import Bodies
from shellwego.api.uplink.callers import Callers
from shellwego.api.uplink.door import Bounds
from shellwego.api.uplink.methods import AnyServed, methods
from shellwego.api.uplink.server import UplinkServer
from shellwego.control.nodeimages import NodeImages
from shellwego.core.errors import ForbiddenError
from shellwego.core.nodecallers import Caller, EdgeCaller, NodeCaller
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.streams.dialled import DialledListener, DialledStreams
from shellwego.drivers.streams.mux import Beat
from shellwego.drivers.uplink.tls import UplinkChannel
from shellwego.ports.bus import Bus
from shellwego.ports.uplink import Memories, Replicas
from shellwego.wire.tls import SERVER_NAME, Credentials
from tests.contract.node_authority import TestingAuthority, key_of
from tests.contract.streams_contract import echo
from tests.contract.uplink_contract import Recorder


def listening() -> socket.socket:
    """A socket that listens on a free port of loopback."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


@dataclass
class Identities:
    """The keys that stand, in place of the control plane's table."""

    authority: TestingAuthority = field(default_factory=TestingAuthority)
    standing: dict[str, Caller] = field(default_factory=dict)
    asked: int = 0

    def node(self, node_id: str = "node_1", name: str = "one") -> Credentials:
        credentials = self.authority.member(node_id)
        self.standing[key_of(credentials)] = NodeCaller(node_id=node_id, name=name)
        return credentials

    def edge(self, edge_id: str = "edg_1", name: str = "front") -> Credentials:
        credentials = self.authority.member(edge_id)
        self.standing[key_of(credentials)] = EdgeCaller(edge_id=edge_id, name=name)
        return credentials

    def retire(self, credentials: Credentials) -> None:
        del self.standing[key_of(credentials)]

    async def identify(self, spki_sha256: str, _authority_id: str = "") -> Caller:
        self.asked += 1
        caller = self.standing.get(spki_sha256)
        if caller is None:
            raise ForbiddenError("node-key-unknown", "no key of this platform")
        return caller


class Port:
    """One server's node port. It can be stopped, and started again at the same place."""

    def __init__(
        self,
        identities: Identities,
        control: Recorder,
        *,
        credentials: Credentials | None = None,
        bounds: Bounds | None = None,
        bodies: Callable[[], Bodies] = Bodies,
        more: dict[str, AnyServed] | None = None,
        beat: Beat | None = None,
        bus: MemoryBus | None = None,
        images: NodeImages | None = None,
        memories: Memories | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self.identities = identities
        self.control = control
        self.bus = bus or MemoryBus()
        self.streams = DialledStreams(beat)
        self.credentials = credentials or identities.authority.server()
        self._images, self._memories, self._replicas = images, memories, replicas
        self._bounds, self._bodies, self._more = bounds, bodies, more or {}
        listener = listening()
        self.number = port_of(listener)
        self.start(listener)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.number}"

    @property
    def connections(self) -> int:
        """Of those that have a certificate."""
        return self.server._door._keys.total()

    def start(self, listener: socket.socket | None = None) -> None:
        if listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.number))
            listener.listen(1024)
        self.server = UplinkServer(
            listener,
            credentials=lambda: self.credentials,
            served={**methods(self.control, self.control), **self._more},
            callers=Callers(self.identities.identify, SystemClock()),
            links=self.streams,
            bus=self.bus,
            images=self._images,
            memories=self._memories,
            replicas=self._replicas,
            bounds=self._bounds,
            bodies=self._bodies(),
        )
        self._running = asyncio.ensure_future(self.server.run())

    async def linked(self, peer_id: str, *, up: bool = True) -> None:
        """Return when the node or edge has a link to this server, or has none."""
        async with asyncio.timeout(20):
            while self.streams.linked(peer_id) is not up:  # noqa: ASYNC110 - it is told nowhere
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.server.stop()
        await self._running


class CuttableWire:
    """A proxy before a port."""

    def __init__(self, port: int, control: Recorder | None = None) -> None:
        self._target = port
        self._control = control
        self._listener = listening()
        self.url = f"https://127.0.0.1:{port_of(self._listener)}"
        self._whole = True
        self._answers = True
        self._frozen = asyncio.Event()
        self._frozen.set()
        self._connections: set[asyncio.StreamWriter] = set()
        self._running = asyncio.ensure_future(self._run())

    def cut(self) -> None:
        """Nothing passes, and who connects is turned away."""
        self._whole = False
        for writer in self._connections:
            writer.transport.abort()

    def lose_answers(self) -> None:
        """Whatever comes back after a call has arrived is lost, and the connection with it."""
        self._answers = False

    def freeze(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._frozen.clear()

    def heal(self) -> None:
        self._whole = self._answers = True
        self._frozen.set()

    async def close(self) -> None:
        self._frozen.set()
        self.cut()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, sock=self._listener)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._connections |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back, lambda: True), self._pass(there, writer, self._answer_passes))
        finally:
            for end in (writer, back):
                self._connections.discard(end)
                end.transport.abort()

    def _answer_passes(self) -> bool:
        return self._answers or self._control is None or not self._control.got

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: Callable[[], bool]) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                await self._frozen.wait()
                if not passes():
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort() if not passes() else sink.close()


@dataclass
class Rig:
    """What a test starts here is stopped with it."""

    identities: Identities = field(default_factory=Identities)
    ports: list[Port] = field(default_factory=list)
    wires: list[CuttableWire] = field(default_factory=list)
    channels: list[UplinkChannel] = field(default_factory=list)
    links: list[asyncio.Future[None]] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def port(self, control: Recorder | None = None, **settings: object) -> Port:
        port = Port(self.identities, control or Recorder(), **settings)  # type: ignore[arg-type]
        self.ports.append(port)
        return port

    def wire(self, port: Port) -> CuttableWire:
        wire = CuttableWire(port.number, port.control)
        self.wires.append(wire)
        return wire

    def channel(self, credentials: Credentials, *urls: str, **settings: float) -> UplinkChannel:
        channel = UplinkChannel(lambda: urls, lambda: credentials, **settings)  # type: ignore[arg-type]
        self.channels.append(channel)
        return channel

    def link(self, credentials: Credentials, *urls: str, hints: Bus | None = None, **settings: object) -> None:
        """Have a node echo what it is sent, until the rig is closed."""
        dialler = WebSocketDialler(lambda: credentials)
        listener = DialledListener(lambda: urls, dialler, hints or MemoryBus(), **settings)  # type: ignore[arg-type]
        self.links.append(asyncio.ensure_future(listener.serve("", echo)))

    async def connect(
        self, port: Port, tls: ssl.SSLContext | None = None, source: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection, from this address."""
        name = SERVER_NAME if tls else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port.number, ssl=tls, server_hostname=name, local_addr=(source, 0)
        )
        self.writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        for link in self.links:
            link.cancel()
        await asyncio.gather(*self.links, return_exceptions=True)
        for channel in self.channels:
            await channel.close()
        for wire in self.wires:
            await wire.close()
        for port in self.ports:
            await port.stop()
