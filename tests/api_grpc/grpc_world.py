"""The platform's gRPC server on memory drivers and real time, and clients of several principals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor

from plasmavmc.rpc.client import EngineClient, connect
from shellwego.api.grpc.server import GrpcServer, GrpcSite
from shellwego.api.ratelimit import RateLimiter
from shellwego.api.server import Tls
from shellwego.control.imagework import ImageWork
from shellwego.control.nodes import accept
from shellwego.control.unit import Unit
from shellwego.core.assignments import NodeReport
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance, Observed, Phase
from shellwego.drivers.clock.system import SystemClock
from shellwego.ports.clock import Clock
from shellwego.ports.engine import LogRecord
from shellwego.ports.store import Store
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire import codec
from shellwego.wire.streams import Record, RecordKind, RecordReader, pack
from tests.api.api_world import OWNER, World, make_world

T = TypeVar("T")
WITHIN_S = 60.0


@dataclass
class GrpcWorld:
    """`api` is the same platform by its REST API and its store."""

    api: World
    server: GrpcServer
    address: str

    @asynccontextmanager
    async def client(self, token: str = OWNER) -> AsyncIterator[EngineClient]:
        async with connect(self.address, token=token) as made:
            yield made

    @asynccontextmanager
    async def restarted(self) -> AsyncIterator[None]:
        """Another server over the same platform, which knows of the first what is stored."""
        async with served(self.api) as (_, address):
            before, self.address = self.address, address
            yield
            self.address = before

    async def observed(self, instance: Instance, phase: Phase, **seen: object) -> None:
        """Have the instance's node say so."""
        before = await self.api.control.read(lambda tx: tx.instances.get(instance.id))
        assert before is not None
        sequence = before.observed.sequence + 1
        told = replace(before.observed, phase=phase, **seen)  # type: ignore[arg-type]  # names and types are its own
        report = NodeReport(
            node_id=self.api.node.id,
            epoch=self.api.node.epoch,
            sequence=sequence,
            facts=self.api.node.facts,
            instances={instance.id: told},
        )
        await self.api.commit(lambda unit: accept(unit, report))

    async def place(self, instance_id: str) -> Instance:
        """Have a run begin on the node, as the loops and an agent would."""

        def work(unit: Unit) -> Instance:
            run = unit.tx.instances.get(instance_id)
            assert run is not None
            seen = Observed(phase=Phase.HEALTHY, attempt=1, vm_id="vm_x", epoch=1, sequence=1)
            unit.hint(f"app.{run.app_id}")
            return unit.tx.instances.update(
                replace(run, node_id=self.api.node.id, phase=Phase.HEALTHY, observed=seen, phase_since=unit.now())
            )

        return await self.api.commit(work)

    async def deployed(self, name: str = "shop") -> Instance:
        """A running instance of an app whose image is there."""
        await self.api.deployed(name)
        return await self.api.running(name)


async def guest(request: StreamRequest, stream: DuplexStream) -> None:
    """Two log lines; nothing to copy out; a session that echoes its input in capitals and ends with 3, a copy with 0."""
    if request.kind is StreamKind.LOGS:
        for text in ("first", "second"):
            record = LogRecord(time=1.0, stream="stdout", text=text)
            await stream.send(pack(Record(RecordKind.LOG, codec.encode(record))))
        return
    if request.kind is StreamKind.COPY_OUT:
        await stream.send(pack(Record(RecordKind.ERROR, f"exec-no-such-path\0{request.path}: no such file".encode())))
        return
    reader = RecordReader()
    while data := await stream.receive():
        for record in reader.feed(data):
            if record.kind is RecordKind.STDIN_EOF:
                code = 0 if request.kind is StreamKind.COPY_IN else 3
                await stream.send(pack(Record(RecordKind.EXIT, code.to_bytes(4, "big"))))
                return
            await stream.send(pack(Record(RecordKind.STDOUT, record.payload.upper())))


@asynccontextmanager
async def served(api: World, tls: Tls | None = None) -> AsyncIterator[tuple[GrpcServer, str]]:
    """A server over a platform, and its address."""
    server = GrpcServer(
        api.control,
        images=ImageWork(api.images, api.clock),
        streams=api.streams,
        site=GrpcSite("127.0.0.1", 0, tls),
        limiter=RateLimiter(),
    )
    serving = asyncio.create_task(server.run())
    try:
        yield server, f"127.0.0.1:{await server.started()}"
    finally:
        server.stop()
        await serving


@asynccontextmanager
async def running(spool: Path, clock: Clock | None = None, store: Store | None = None) -> AsyncIterator[GrpcWorld]:
    api = await make_world(spool, clock=clock or SystemClock(), store=store)
    parts = [
        asyncio.create_task(api.streams.serve(api.node.id, guest)),
        asyncio.create_task(_fetch_images(api)),
    ]
    try:
        async with served(api) as (server, address):
            yield GrpcWorld(api, server, address)
    finally:
        for part in parts:
            part.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await part


async def _fetch_images(api: World) -> None:
    """What is registered is there at once."""

    def ready(unit: Unit) -> None:
        for row in unit.tx.images.select():
            if row.state is ImageState.FETCHING:
                unit.tx.images.update(replace(row, state=ImageState.READY))

    async with api.control.bus.subscribe("images") as hints:
        async for _ in hints:
            await api.commit(ready)


async def refusal(
    channel: grpc.aio.Channel, method: MethodDescriptor, metadata: tuple[tuple[str, str], ...] | None = None
) -> str:
    """The status of a call by whom nobody knows. A stream sends nothing: a write that meets the refusal would hide it."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    remote = getattr(channel, kind)(path)
    try:
        call = remote(metadata=metadata) if method.client_streaming else remote(b"", metadata=metadata)
        await (call.read() if method.server_streaming else call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"
