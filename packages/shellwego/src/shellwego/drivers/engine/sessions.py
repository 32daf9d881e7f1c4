"""What stays open for a while: a running command of a VM, and a snapshot that is read, in the platform's words."""

from __future__ import annotations

from collections.abc import AsyncIterator

from plasmavmc.guest.api import ExecExit, ExecSession
from plasmavmc.storage.volumes.content import SnapshotReader
from plasmavmc.types import TerminalSize
from shellwego.drivers.engine.failures import translated
from shellwego.ports.engine import ExecData, ExecDone
from shellwego.ports.streams import StreamRequest


class PlasmaSource:
    """`ports.engine.SnapshotSource` on a snapshot that the engine has open."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def volume_bytes(self) -> int:
        return self._reader.volume_bytes

    @property
    def sealed(self) -> bool:
        return self._reader.sealed

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        with translated():
            return await self._reader.next_data(offset)

    async def read(self, offset: int, size: int) -> bytes:
        with translated():
            return await self._reader.read(offset, size)


class PlasmaExec:
    """An exec session of the engine in the platform's words."""

    def __init__(self, session: ExecSession) -> None:
        self._session = session

    async def send(self, data: bytes) -> None:
        with translated():
            await self._session.send(data)

    async def send_eof(self) -> None:
        with translated():
            await self._session.send_eof()

    async def resize(self, rows: int, columns: int) -> None:
        with translated():
            await self._session.resize(TerminalSize(rows, columns))

    async def signal(self, number: int) -> None:
        with translated():
            await self._session.signal(number)

    async def output(self) -> AsyncIterator[ExecData | ExecDone]:
        with translated():
            async for item in self._session.output():
                match item:
                    case ExecExit(code):
                        yield ExecDone(code=code)
                    case _:
                        yield ExecData(stream=item.stream.value, data=item.data)

    async def aclose(self) -> None:
        await self._session.aclose()


def terminal_size(request: StreamRequest) -> TerminalSize | None:
    """Of the terminal that is asked for; None: none is."""
    return TerminalSize(request.rows, request.columns) if request.rows and request.columns else None
