"""Firecracker's API: HTTP/1.1 over a unix socket, a few calls in a VM's life, each with a deadline.

Theory. The VMM answers one call at a time and takes ten connections, so a client has one and lets go of it after a block
of calls. An error's status says almost nothing (400 for a wrong field, a wrong state and a device that is not there) and
its words change from release to release; so what an error means is judged by the path and by the state that we know the
VM to be in, and the VMM's words are for people. The peer may be a VMM that its guest has taken over: answers are bounded,
and whatever is not an answer is an error, never an exception from a parser.

Traps:
- The socket's file appears before the VMM listens: a refused connection is tried again until the deadline.
- A call that waits for vCPUs (pause, snapshot) may take the VMM 30 s before it gives up; our deadline is beyond that.
- After a snapshot that could not be loaded the VMM answers 400 and then ends by itself, unless the body was at fault.
- `GET /` knows no state "stopped": the process is gone.

Source: src/firecracker/src/api_server, src/vmm/src/rpc_interface.rs and docs/api_requests of Firecracker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from plasmavmc.deadlines import within
from plasmavmc.errors import ConflictError, HostError, PlasmaError, UnavailableError
from plasmavmc.hypervisor.firecracker.models import (
    Action,
    ActionType,
    Fault,
    InstanceInfo,
    InstanceState,
    RunState,
    SnapshotLoad,
    VmmVersion,
    VmUpdate,
)
from plasmavmc.hypervisor.firecracker.requests import Request
from plasmavmc.hypervisor.firecracker.versions import Version, parse_version

CALL_DEADLINE_S = 5.0
SLOW_CALL_DEADLINE_S = 35.0
"""For what waits for vCPUs, or writes the guest's memory."""
ANSWER_LIMIT = 256 * 1024
_CONNECT_PAUSE_S = 0.005
_SLOW = frozenset({"/vm", "/snapshot/create", "/snapshot/load", "/actions"})
_BAD_REQUEST = 400
_TOO_MANY = 503

T = TypeVar("T")


class Phase(StrEnum):
    """What a VMM can be asked for. `UNKNOWN` until it was asked or told."""

    UNKNOWN = "unknown"
    NOT_STARTED = "not started"
    RUNNING = "running"
    PAUSED = "paused"


_PHASES = {
    InstanceState.NOT_STARTED: Phase.NOT_STARTED,
    InstanceState.RUNNING: Phase.RUNNING,
    InstanceState.PAUSED: Phase.PAUSED,
}


def allowed(request: Request) -> frozenset[Phase]:
    """The phases in which a call can succeed."""
    match request.method, request.path:
        case "PATCH", "/vm":
            return frozenset({Phase.RUNNING, Phase.PAUSED})
        case _, "/snapshot/create":
            return frozenset({Phase.PAUSED})
        case _:
            return frozenset({Phase.NOT_STARTED})


class FirecrackerClient:
    """One connection's worth of calls. Made by `firecracker_client`; not for several tasks at once."""

    def __init__(self, session: aiohttp.ClientSession, phase: Phase) -> None:
        self._session = session
        self.phase = phase

    async def version(self) -> Version:
        """The release at the other end.

        Raises:
            HostError: `firecracker-version`, too old, or none.
            UnavailableError: as `perform`.
        """
        return parse_version((await self._get("/version", VmmVersion)).firecracker_version)

    async def info(self) -> InstanceInfo:
        """Who it says it is, and its state.

        Raises:
            UnavailableError: as `perform`.
        """
        info = await self._get("/", InstanceInfo)
        self.phase = _PHASES[info.state]
        return info

    async def perform(self, request: Request) -> None:
        """Ask for a change.

        Raises:
            ConflictError: `firecracker-phase`, the VM is in a phase that forbids it.
            HostError: `firecracker-refused`, with what the VMM said; `firecracker-protocol`, it could not read us.
            UnavailableError: `firecracker-silent`, no answer in time, or the VMM ended; `firecracker-busy`, too many
                connections.
        """
        deadline_s = SLOW_CALL_DEADLINE_S if request.path in _SLOW else CALL_DEADLINE_S
        status, data = await self._call(request.method, request.path, msgspec.json.encode(request.body), deadline_s)
        if status not in (200, 204):
            raise self._error(request, status, data)
        self.phase = _after(request, self.phase)

    async def _get(self, path: str, kind: type[T]) -> T:
        status, data = await self._call("GET", path, None, CALL_DEADLINE_S)
        try:
            if status == 200:
                return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _silent("the VMM's API does not speak its protocol") from error
        if status == _TOO_MANY:
            raise _busy(_fault(data).text)
        raise _silent(f"the VMM answers GET {path} with {status}")

    async def _call(self, method: str, path: str, body: bytes | None, deadline_s: float) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            async with (
                within(deadline_s),
                self._session.request(method, f"http://localhost{path}", data=body, headers=headers) as answer,
            ):
                return answer.status, await _bounded(answer)
        except TimeoutError as error:
            raise _silent(f"no answer to {method} {path} within {deadline_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _silent(f"the VMM went away during {method} {path}") from error

    def _error(self, request: Request, status: int, data: bytes) -> PlasmaError:
        what, fault = f"{request.method} {request.path}", _fault(data)
        said = fault.text[:500]
        if status == _TOO_MANY:
            return _busy(said)
        if fault.error or status != _BAD_REQUEST:
            return HostError("firecracker-protocol", f"Firecracker answered {what} with {status}", details=said)
        if self.phase not in (Phase.UNKNOWN, *allowed(request)):
            return ConflictError("firecracker-phase", f"{what} is not for a VM that is {self.phase}", details=said)
        return HostError("firecracker-refused", f"Firecracker refused {what}", details=said)


@asynccontextmanager
async def firecracker_client(
    path: Path,
    *,
    phase: Phase = Phase.UNKNOWN,
    deadline_s: float = CALL_DEADLINE_S,
    ended: Callable[[], bool] = lambda: False,
) -> AsyncIterator[FirecrackerClient]:
    """A client for the length of a block. Waits for a VMM that is still starting, unless it has `ended`.

    Raises:
        UnavailableError: `firecracker-silent`, nothing listens there within `deadline_s`, or the VMM ended.
    """
    await _listening(path, deadline_s, ended)
    connector = aiohttp.UnixConnector(path=str(path), limit=1)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield FirecrackerClient(session, phase)


async def _listening(path: Path, deadline_s: float, ended: Callable[[], bool]) -> None:
    """Return when something listens at `path`."""
    try:
        async with within(deadline_s):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(str(path))
                except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                    if ended():
                        raise _silent("the VMM ended before its API listened") from None
                    await asyncio.sleep(_CONNECT_PAUSE_S)
                else:
                    writer.close()
                    return
    except TimeoutError as error:
        raise _silent(f"the VMM's API does not listen after {deadline_s:g} s") from error
    except OSError as error:
        raise _silent(f"the VMM's API cannot be reached: {error.strerror or error}") from error


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in answer.content.iter_any():
        data += chunk
        if len(data) > ANSWER_LIMIT:
            raise ValueError("an answer beyond all bounds")
    return bytes(data)


def _after(request: Request, phase: Phase) -> Phase:
    """The phase after a call that succeeded."""
    match request.body:
        case Action(action_type=ActionType.INSTANCE_START):
            return Phase.RUNNING
        case VmUpdate(state=state):
            return Phase.PAUSED if state is RunState.PAUSED else Phase.RUNNING
        case SnapshotLoad(resume_vm=resume):
            return Phase.RUNNING if resume else Phase.PAUSED
        case _:
            return phase


def _fault(data: bytes) -> Fault:
    try:
        return msgspec.json.decode(data, type=Fault)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Fault(error=data[:200].decode(errors="replace"))


def _silent(brief: str) -> UnavailableError:
    return UnavailableError("firecracker-silent", brief)


def _busy(said: str) -> UnavailableError:
    return UnavailableError("firecracker-busy", "Firecracker takes no further connection", details=said)
