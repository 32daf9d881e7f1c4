"""A command in a VM behind a server, or the workload itself, for the client's side. Implements `ExecSession`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeAlias, cast

import grpc

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.rpc.conversions.streams import exec_to_pb, output_from_pb, size_to_pb
from plasmavmc.rpc.errors import error_of
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.types import ExecSpec, TerminalSize

Call: TypeAlias = "grpc.aio.StreamStreamCall[Any, vm_pb2.ExecVmResponse]"
Request: TypeAlias = "type[vm_pb2.ExecVmRequest] | type[vm_pb2.AttachVmRequest]"

_CHUNK = 64 * 1024


class RemoteExec:
    """A running command. The transport's own flow control holds back whoever writes to one that does not read."""

    def __init__(self, call: Call, request: Request = vm_pb2.ExecVmRequest) -> None:
        self._call = call
        self._request = request
        self._writing = asyncio.Lock()

    @classmethod
    async def start(cls, call: Call, vm_id: str, spec: ExecSpec) -> RemoteExec:
        """Start the command, and wait until it runs.

        Raises:
            PlasmaError: why it does not.
        """
        return await cls(call)._begin(vm_pb2.ExecVmRequest(start=exec_to_pb(vm_id, spec)))

    @classmethod
    async def attach(cls, call: Call, vm_id: str, size: TerminalSize | None) -> RemoteExec:
        """Join a workload. Letting go of this leaves it alone.

        Raises:
            PlasmaError: there is none to join.
        """
        start = vm_pb2.AttachStart(vm_id=vm_id, terminal=None if size is None else size_to_pb(size))
        return await cls(call, vm_pb2.AttachVmRequest)._begin(vm_pb2.AttachVmRequest(start=start))

    async def _begin(self, start: vm_pb2.ExecVmRequest | vm_pb2.AttachVmRequest) -> RemoteExec:
        try:
            await self._call.write(start)
            answer = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._failure(error) from error
        if answer is grpc.aio.EOF:
            raise await self._failure(None)
        return self

    async def send(self, data: bytes) -> None:
        """Write to its stdin; waits for room. What is sent to a command that ended is dropped."""
        for start in range(0, len(data), _CHUNK):
            await self._write(self._request(stdin=data[start : start + _CHUNK]))

    async def send_eof(self) -> None:
        """Close its stdin."""
        await self._write(self._request(stdin_eof=True))

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its pty."""
        await self._write(self._request(resize=size_to_pb(size)))

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        await self._write(self._request(signal=number))

    def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        """What it writes, and last its exit code.

        Raises:
            PlasmaError: it cannot be known any more: the guest, the server or the way to it is gone.
        """
        return self._output()

    async def _output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        while True:
            try:
                answer = await self._call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise await self._failure(error) from error
            if answer is grpc.aio.EOF:
                raise await self._failure(None)
            item = output_from_pb(cast("vm_pb2.ExecVmResponse", answer))
            if item is not None:
                yield item
            if isinstance(item, ExecExit):
                return

    async def aclose(self) -> None:
        """Let it go: the command is hung up, then killed."""
        self._call.cancel()

    async def _write(self, message: vm_pb2.ExecVmRequest | vm_pb2.AttachVmRequest) -> None:
        """One write at a time; what comes after the end is dropped, for the output tells the end."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async with self._writing:
                await self._call.write(message)

    async def _failure(self, error: BaseException | None) -> Exception:
        """Why the stream ended."""
        if isinstance(error, grpc.aio.AioRpcError):
            return error_of(error)
        if await self._call.code() is grpc.StatusCode.OK:
            return GuestError("exec-cut", "the command's stream ended before the command did")
        initial, trailing = await self._call.initial_metadata(), await self._call.trailing_metadata()
        return error_of(grpc.aio.AioRpcError(await self._call.code(), initial, trailing, await self._call.details()))
