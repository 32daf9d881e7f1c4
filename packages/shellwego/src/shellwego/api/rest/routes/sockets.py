"""WebSockets: exec, console and logs of one instance, as records of `wire.streams` in binary messages.

A client authenticates by the Authorization header of the handshake (never by the query, which ends up in logs), and is
admitted and audited before the socket is accepted; a refusal is an ordinary HTTP problem. A stream ends with the right to
it: with the token, and with the grant by which its holder was admitted. The API does not look into the
bytes: the agent parses what comes from the client, the client what comes from the guest. Both directions wait for each
other, so a reader that stalls stops only its own stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter, WebSocket
from starlette.requests import Request
from starlette.websockets import WebSocketDisconnect

from shellwego.api.rest.context import Context, context_of
from shellwego.api.rest.guard import admit_socket, check_parameters
from shellwego.api.rest.problems import core_problem
from shellwego.api.rest.rights import until_refused
from shellwego.control.authorization import Access
from shellwego.control.config import check_command
from shellwego.control.instances import logged_instances, reachable_instance
from shellwego.control.logs import MAX_TAIL
from shellwego.control.streams import error_record, open_stream
from shellwego.control.targets import AppTarget, InstanceTarget
from shellwego.core.errors import ConflictError, MalformedError, ShellWeGoError, UnavailableError
from shellwego.core.instances import Instance
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest

router = APIRouter(prefix="/v1")
_CHUNK = 32 * 1024
_OF_ALL = frozenset({"project", "instance", "process"})
_COMMAND = "command"
"""Given once for each argument."""

Serve = Callable[[WebSocket, Context, Access], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class GuardedSocket:
    """A WebSocket endpoint with its permission; the shape that `guard.check_guarded` looks for."""

    permission: str
    parameters: frozenset[str]
    serve: Serve

    async def __call__(self, socket: WebSocket) -> None:
        """Admit, find the instance, open the stream, and only then accept."""
        context = context_of(socket)
        try:
            access = await admit_socket(socket, self.permission)
            check_parameters(socket, self.parameters, repeated=_COMMAND)
            with context.shares.request(access.principal):
                await self.serve(socket, context, access)
        except ShellWeGoError as error:
            await _refuse(socket, error)


async def _refuse(socket: WebSocket, error: ShellWeGoError) -> None:
    scope = {**socket.scope, "type": "http", "method": "GET"}
    await socket.send_denial_response(core_problem(Request(scope), error))


def _guarded(path: str, permission: str, *parameters: str) -> Callable[[Serve], Serve]:
    """Add a socket under its permission; beside `parameters` it has those that say of which instance it is."""

    def add(serve: Serve) -> Serve:
        endpoint = GuardedSocket(permission, _OF_ALL.union(parameters), serve)

        async def run(socket: WebSocket) -> None:
            await endpoint(socket)

        run.permission = permission  # type: ignore[attr-defined]  # `guard.check_guarded` asks for it
        router.add_api_websocket_route(path, run)
        return serve

    return add


@_guarded("/apps/{app}/exec", "instances:exec", _COMMAND, "rows", "columns")
async def exec_socket(socket: WebSocket, context: Context, access: Access) -> None:
    """Run `command` (once for each argument) in an instance; with `rows` and `columns` on a terminal."""
    query = socket.query_params
    command = tuple(query.getlist(_COMMAND))
    check_command(command)
    request = StreamRequest(
        kind=StreamKind.EXEC,
        instance_id="",
        command=command,
        rows=_number(socket, "rows", 0, 1000),
        columns=_number(socket, "columns", 0, 1000),
    )
    instance = await access.write(
        _target(socket),
        lambda unit, app: reachable_instance(unit.tx, app, query.get("instance", ""), query.get("process", "")),
    )
    await _serve(socket, context, access, instance, request)


@_guarded("/apps/{app}/logs", "instances:read", "follow", "tail")
async def logs_socket(socket: WebSocket, context: Context, access: Access) -> None:
    """The log of one instance, followed with `follow=true`; left out, the newest of what lives or ended."""
    query = socket.query_params
    request = StreamRequest(
        kind=StreamKind.LOGS,
        instance_id="",
        follow=query.get("follow", "false") == "true",
        tail=_number(socket, "tail", 100, MAX_TAIL),
    )
    found = await access.read(
        _target(socket),
        lambda tx, app: logged_instances(tx, app, query.get("instance", ""), query.get("process", "")),
    )
    if not found:
        raise ConflictError("no-logs", "the app has no instance that ever ran")
    await _serve(socket, context, access, found[0], request)


def _target(socket: WebSocket) -> AppTarget:
    return AppTarget(socket.path_params["app"], socket.query_params.get("project", ""))


def _number(socket: WebSocket, name: str, default: int, most: int) -> int:
    text = socket.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= most):
        raise MalformedError("bad-number", f"{name} is a whole number up to {most}")
    return int(text)


async def _serve(
    socket: WebSocket, context: Context, access: Access, instance: Instance, request: StreamRequest
) -> None:
    """Carry bytes both ways until the stream ends, the client leaves, it may not have this any more, or the server stops."""
    with context.shares.lasting(access):
        stream = await open_stream(context.streams, instance, request)
        await _carry(socket, context, access, instance, stream)


async def _carry(socket: WebSocket, context: Context, access: Access, instance: Instance, stream: DuplexStream) -> None:
    try:
        await socket.accept()
        downwards = asyncio.ensure_future(_to_client(socket, stream))
        others = [
            asyncio.ensure_future(_from_client(socket, stream)),
            asyncio.ensure_future(until_refused(context, access, InstanceTarget(instance.id))),
        ]
        await asyncio.wait([downwards, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in (downwards, *others):
            task.cancel()
        results = await asyncio.gather(downwards, *others, return_exceptions=True)
        await _close(socket, results)
    finally:
        await stream.aclose()


async def _close(socket: WebSocket, results: list[BaseException | None]) -> None:
    """Tell the client why, where there is still one; a defect of ours goes on to the log."""
    failures = [r for r in results if isinstance(r, Exception) and not isinstance(r, WebSocketDisconnect)]
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        for failure in failures:
            if isinstance(failure, ShellWeGoError):
                await socket.send_bytes(error_record(failure))
        await socket.close(1000 if not failures else 1011)
    for failure in failures:
        if not isinstance(failure, ShellWeGoError):
            raise failure


async def _to_client(socket: WebSocket, stream: DuplexStream) -> None:
    while data := await stream.receive():
        for start in range(0, len(data), _CHUNK):
            await socket.send_bytes(data[start : start + _CHUNK])


async def _from_client(socket: WebSocket, stream: DuplexStream) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        data = message.get("bytes")
        if data is None:
            raise MalformedError("text-message", "the socket carries binary messages")
        # A command that is gone needs no input: its end is told by its output.
        with contextlib.suppress(UnavailableError):
            await stream.send(data)
