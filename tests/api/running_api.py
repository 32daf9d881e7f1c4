"""The API on memory drivers behind a real socket, for whoever speaks to it as a client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from shellwego.api.server import ApiServer, Tls
from shellwego.control.loops.outbox import relay_forever
from shellwego.control.throttling import Throttle
from shellwego.core.vms import VmUsage
from shellwego.drivers.clock.system import SystemClock
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire.codec import encode
from shellwego.wire.streams import Record, RecordKind, RecordReader, pack
from tests.api.api_world import World, make_world
from tests.api.test_api_streams import log

USAGE = VmUsage(memory_bytes=100 << 20, cpu_seconds=1.5, disk_bytes=2 << 20, pressure={"cpu": 0.25})


class Running:
    """The API in a thread of its own, as a process would run it."""

    def __init__(
        self,
        spool: Path,
        make_store: Callable[[Clock], Store] | None = None,
        throttle: Throttle | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._spool = spool
        self._tls = tls
        self._make_store = make_store
        self._throttle = throttle
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._ready: Future[World] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.loop: asyncio.AbstractEventLoop
        self.server: ApiServer
        self.opened: list[StreamRequest] = []
        self.cancelled = threading.Event()

    def __enter__(self) -> Running:
        self._thread.start()
        self.world = self._ready.result(60)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.stop)
            self._thread.join(10)
        assert not self._thread.is_alive()

    def do(self, coroutine: Any, within_s: float = 10) -> Any:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(within_s)

    async def _main(self) -> None:
        clock = SystemClock()
        store = self._make_store(clock) if self._make_store else None
        world = await make_world(self._spool, clock=clock, store=store, throttle=self._throttle)
        self.server = ApiServer(world.app, self.listener, self._tls)
        self.loop = asyncio.get_running_loop()
        others = [
            asyncio.ensure_future(world.streams.serve(world.node.id, self._guest)),
            asyncio.ensure_future(relay_forever(world.control)),
        ]
        serving = asyncio.ensure_future(self.server.run())
        await self.server.started()
        self._ready.set_result(world)
        await serving
        for task in others:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _guest(self, request: StreamRequest, stream: DuplexStream) -> None:
        """Echoes input; `flood` writes for ever; logs have three lines."""
        if request.kind is StreamKind.USAGE:
            await stream.send(pack(Record(RecordKind.USAGE, encode(USAGE))))
            return
        self.opened.append(request)
        if request.kind is StreamKind.LOGS:
            for number in range(3):
                await stream.send(log(float(number), f"line {number}"))
            return
        if request.command == ("flood",):
            try:
                while True:
                    await stream.send(pack(Record(RecordKind.STDOUT, b"x" * 32768)))
            finally:
                self.cancelled.set()
        reader = RecordReader()
        while data := await stream.receive():
            for record in reader.feed(data):
                if record.kind is RecordKind.STDIN_EOF:
                    await stream.send(pack(Record(RecordKind.EXIT, b"\0\0\0\x03")))
                    return
                kind = RecordKind.STDOUT if record.kind is RecordKind.STDIN else RecordKind.STDERR
                await stream.send(pack(Record(kind, record.payload)))
