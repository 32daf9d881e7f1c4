"""What runs in, or is copied through, a VM of the memory engine; each implements `ports.engine.ExecChannel`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from shellwego.ports.engine import ExecData, ExecDone, LogRecord
from shellwego.ports.streams import StreamKind, StreamRequest

Stop = Callable[[], Awaitable[None]]
ExitCode = Callable[[], int]


class MemoryExec:
    """`echo WORDS` writes them, `exit N` and `true` end, `cat` gives back what it is sent; there are no others."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16)

    async def send(self, data: bytes) -> None:
        await self._input.put(data)

    async def send_eof(self) -> None:
        await self._input.put(b"")

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, number: int) -> None:
        await self._input.put(b"")

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        match self._command:
            case ("echo", *words):
                yield ExecData(stream="stdout", data=" ".join(words).encode() + b"\n")
                yield ExecDone(code=0)
            case ("cat",):
                while data := await self._input.get():
                    yield ExecData(stream="stdout", data=data)
                yield ExecDone(code=0)
            case ("exit", code):
                yield ExecDone(code=int(code))
            case ("true",):
                yield ExecDone(code=0)
            case _:
                yield ExecData(stream="stderr", data=f"{self._command[0]} was not found in the image\n".encode())
                yield ExecDone(code=127)

    async def aclose(self) -> None:
        pass


class MemoryCopy:
    """What comes in is kept by its path as it is, and given out so again."""

    def __init__(self, files: dict[str, bytes], request: StreamRequest) -> None:
        self._files = files
        self._request = request
        self._received = b""
        self._ended = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self._received += data

    async def send_eof(self) -> None:
        self._ended.set()

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, number: int) -> None:
        pass

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        path = self._request.path
        if self._request.kind is StreamKind.COPY_IN:
            await self._ended.wait()
            self._files[path] = self._received
        else:
            yield ExecData(stream="stdout", data=self._files[path])
        yield ExecDone(code=0)

    async def aclose(self) -> None:
        pass


class MemoryAttachment:
    """The workload's log as it is written, until its end; it takes no input."""

    def __init__(self, log: AsyncIterator[LogRecord], stop: Stop, code: ExitCode) -> None:
        self._log = log
        self._stop = stop
        self._code = code

    async def send(self, data: bytes) -> None:
        pass

    async def send_eof(self) -> None:
        pass

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def signal(self, number: int) -> None:
        await self._stop()

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        async for record in self._log:
            yield ExecData(stream=record.stream, data=f"{record.text}\n".encode())
        yield ExecDone(code=self._code())

    async def aclose(self) -> None:
        pass
