"""The node port of one server, joined: who is let in, who may join, and what this server shows there.

What a server shows is made in its memory at its start. It is made anew in time, and whenever an authority comes or goes, so
that nodes of a new authority are believed and those of a retired one are not.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from shellwego.api.uplink.callers import Callers
from shellwego.api.uplink.joining import join_methods
from shellwego.api.uplink.methods import methods
from shellwego.api.uplink.server import UplinkServer
from shellwego.control.buskeys import BusPasses
from shellwego.control.edges import Edges
from shellwego.control.joins import Joins
from shellwego.control.memories import NodeMemories
from shellwego.control.nodeauthority import NodeAuthorities, ServerIdentity
from shellwego.control.nodeimages import NodeImages
from shellwego.control.nodekeys import NodeIdentity
from shellwego.control.nodes import Nodes
from shellwego.control.replicastreams import NodeReplicas
from shellwego.control.sealing import Sealer
from shellwego.control.servers import Servers
from shellwego.control.traffic import TrafficBook
from shellwego.control.unit import Control
from shellwego.core.backups import RepositoryPlace
from shellwego.core.errors import ShellWeGoError
from shellwego.core.peers import DAY_S
from shellwego.drivers.uplink.downloads import Downloads
from shellwego.ports.busaccess import BusAccess
from shellwego.ports.images import ImageBlobs
from shellwego.ports.streams import Streams
from shellwego.wire.links import Links
from shellwego.wire.tls import Credentials

LOOK_S = 2.0
_RENEW_S = 10 * 24 * 3600.0
"""With so much of its certificate left a server makes another."""
_BLOBS_AT_ONCE = 32
"""As many as images are fetched at a time."""

log = structlog.get_logger("shellwego.boot")


class ShownIdentity:
    """What this server shows."""

    def __init__(self, control: Control, authorities: NodeAuthorities, identity: ServerIdentity) -> None:
        self._control = control
        self._authorities = authorities
        self._identity = identity
        self._credentials = _credentials(identity)

    def credentials(self) -> Credentials:
        """As of now."""
        return self._credentials

    async def watch(self) -> None:
        """Show another certificate whenever that is due, until cancelled."""
        while True:
            await self._control.clock.sleep(LOOK_S)
            try:
                await self.refresh()
            except ShellWeGoError as error:
                log.warning("node_port.not_refreshed", reason=error.message)

    async def refresh(self) -> None:
        """Show another certificate where that is due; raises what `NodeAuthorities.server_identity` raises."""
        now = await self._control.read(lambda tx: tx.now())
        if not await self._authorities.changed(self._identity) and self._identity.expires_at - now > _RENEW_S:
            return
        self._identity = await self._authorities.server_identity()
        self._credentials = _credentials(self._identity)


class Fellows:
    """The other servers, as they are known now. Which of them does not answer is kept in mind from one blob to the next.

    What a server has of another can be fetched nowhere else: so nothing is missing while one that may have it is away.
    """

    def __init__(self, servers: Servers, credentials: Callable[[], Credentials]) -> None:
        self._servers = servers
        self._urls: tuple[str, ...] = ()
        self._downloads = Downloads(lambda: self._urls, credentials, absent_s=math.inf, at_once=_BLOBS_AT_ONCE)

    async def blob(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """As `NodePort.fellow_blob`."""
        self._urls = await self._servers.told()
        async with aclosing(self._downloads.blob(digest, offset)) as chunks:
            async for chunk in chunks:
                yield chunk


@dataclass(frozen=True, slots=True)
class NodePort:
    """Serves nodes and edges from `run` until `stop`."""

    authorities: NodeAuthorities
    shown: ShownIdentity
    servers: Servers
    server: UplinkServer
    fellows: Fellows
    name: str = "node port"

    def fellow_blob(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """A blob of another server, from an offset on. Its reader checks the digest. This server may be asked, too: it does
        not know which of the platform's addresses is its own.

        Raises:
            NotFoundError: all servers answer, and none has it.
            UnavailableError: it cannot be had now.
        """
        return self.fellows.blob(digest, offset)

    @classmethod
    async def open(
        cls,
        control: Control,
        sealer: Sealer,
        listener: socket.socket,
        *,
        links: Links,
        images: ImageBlobs,
        streams: Streams,
        servers: Servers,
        access: BusAccess | None = None,
        repository: RepositoryPlace | None = None,
        key_generation_s: float = DAY_S,
        traffic: TrafficBook | None = None,
    ) -> NodePort:
        """On a socket that listens; `streams` reaches all nodes, `access` is to the bus that hosts may listen on by
        themselves, if there is one, `repository` where backups lie. `key_generation_s`: so long nodes use a key between
        them. `traffic`: as `Nodes` has it.

        Raises:
            UnavailableError: the KMS does not answer.
            ConflictError: the authority's key does not open.
        """
        authorities = NodeAuthorities(control, sealer)
        shown = ShownIdentity(control, authorities, await authorities.server_identity())
        nodes = Nodes(control, sealer, repository, key_generation_s=key_generation_s, traffic=traffic)
        server = UplinkServer(
            listener,
            credentials=shown.credentials,
            served={
                **methods(nodes, Edges(control)),
                **join_methods(Joins(control, authorities, servers), servers, BusPasses(control, access)),
            },
            callers=Callers(NodeIdentity(control).identify, control.clock),
            links=links,
            bus=control.bus,
            images=NodeImages(control, images),
            memories=NodeMemories(control, streams),
            replicas=NodeReplicas(control, streams),
        )
        await servers.say()
        return cls(authorities, shown, servers, server, Fellows(servers, shown.credentials))

    async def run(self) -> None:
        """Serve until `stop`, or until cancelled; raises what ends any part of it, for the others are worth nothing then."""
        parts = (self.server.run(), self.shown.watch(), self.servers.keep_saying())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.server.stop()  # and is not cancelled: calls that run get their few seconds
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def started(self) -> None:
        """Return when calls are answered."""
        await self.server.started()

    def stop(self) -> None:
        """Take no new calls, end links."""
        self.server.stop()


def _credentials(identity: ServerIdentity) -> Credentials:
    return Credentials(
        certificate=identity.chain.encode(), key=identity.key, authorities="".join(identity.authorities).encode()
    )
