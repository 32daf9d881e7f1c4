"""HAProxy's runtime API: commands as text, answers parsed (HAProxy management manual, chapter 9).

Traps, measured with 2.6:

- A command that fails says so in its answer only; one that succeeds answers with nothing, except `add server` and
  `del server`. So every answer is compared with the one that means success.
- Answers have no reliable end: some errors lack the empty line. In interactive mode (`prompt`) each ends with a prompt.
- A request must stay under HAProxy's buffer (16 KB); a longer one loses its tail.
- The master closes the connection only after we have closed our half.
- The master cannot be reached for an instant while it re-executes itself, and answers a `reload` with nothing.
- A stopping worker refuses commands about servers ("Proxy is disabled."), but takes those about maps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from shellwego.core.errors import UnavailableError
from shellwego.edge.config import RETIRED_KEY, RETIRED_VALUE, SERVER_OPTIONS
from shellwego.edge.pool import (
    POOL_PREFIX,
    AddServer,
    CutSessions,
    DeleteServer,
    DropHost,
    DropPage,
    Key,
    Operation,
    Pool,
    Server,
    ServerState,
    SetPage,
    SetState,
    SetWeight,
    TurnHost,
)
from shellwego.edge.settings import Layout

MAX_REQUEST = 8 * 1024
MAX_ANSWER = 64 * 1024 * 1024
TIMEOUT_S = 5.0

_PROMPT = "> "
_DRAIN_BITS = 0x08 | 0x10
_MAINT_BITS = 0x01 | 0x02 | 0x04 | 0x20
"""`srv_admin_state` of `show servers state` (management manual 9.3): forced and inherited drain; any maintenance."""


class RuntimeApiError(UnavailableError):
    """HAProxy does not answer, or not in the form that we know."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "edge-runtime-api", message, resolution="see the edge's log; HAProxy is restarted if it stays so"
        )


@dataclass(frozen=True, slots=True)
class Processes:
    """The answer of `show proc`: the current worker, and old ones that finish what they have."""

    worker: int
    old: tuple[int, ...]
    failed_reloads: int


async def ask(socket: Path, request: str) -> str:
    """Send one line and read all that comes back.

    Raises:
        RuntimeApiError: no connection, no end within five seconds, or an answer without bound.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(request.encode() + b"\n")
                writer.write_eof()
                return await _read_all(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise RuntimeApiError(f"{socket}: no answer within {TIMEOUT_S:g} s") from None
    except OSError as error:
        raise RuntimeApiError(f"{socket}: {error.strerror or error}") from error


async def _read_all(reader: asyncio.StreamReader) -> str:
    data = bytearray()
    while chunk := await reader.read(256 * 1024):
        data += chunk
        if len(data) > MAX_ANSWER:
            raise RuntimeApiError("an answer of HAProxy is longer than anything it should say")
    return data.decode(errors="replace")


class Worker:
    """The runtime API of the current worker."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def pid(self) -> int:
        """The process that answers on the admin socket."""
        info = await ask(self._layout.admin_socket, "show info")
        return _number(_info_field(info, "Pid"))

    async def config_version(self) -> str:
        """What `config.version` was when this worker's configuration was written."""
        return _info_field(await ask(self._layout.admin_socket, "show info"), "description")

    async def pool(self) -> Pool:
        """Everything that this worker holds under our names."""
        layout = self._layout
        states = parse_states(await ask(layout.admin_socket, "show servers state"))
        used = parse_connections(await ask(layout.admin_socket, "show servers conn"))
        backends = parse_backends(await ask(layout.admin_socket, "show backend"))
        hosts = parse_map(await ask(layout.admin_socket, f"show map {layout.hosts_map}"))
        pages = parse_map(await ask(layout.admin_socket, f"show map {layout.pages_map}"))
        servers = {
            key: Server(server.address, server.weight, server.state, used.get(key, 0)) for key, server in states.items()
        }
        return Pool(len(backends), servers, hosts, pages)

    async def connections(self, backends: Iterable[str]) -> dict[Key, int]:
        """Connections in use of each server of these backends."""
        wanted = sorted(backends)
        if len(wanted) > 16:
            return parse_connections(await ask(self._layout.admin_socket, "show servers conn"))
        found: dict[Key, int] = {}
        for backend in wanted:
            found |= parse_connections(await ask(self._layout.admin_socket, f"show servers conn {backend}"))
        return found

    async def execute(self, operations: Sequence[Operation]) -> list[str]:
        """Do these in turn, whatever becomes of each; returns an empty text or HAProxy's complaint for every one."""
        complaints: list[str] = []
        for batch in batches([command(self._layout, operation) for operation in operations]):
            answers = split_answers(await ask(self._layout.admin_socket, ";".join(["prompt", *batch])), len(batch))
            complaints += answers
        return [_complaint(operation, answer) for operation, answer in zip(operations, complaints, strict=True)]


class Master:
    """The master's socket: its own commands, and old workers by pid."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def processes(self) -> Processes:
        """Who is there now."""
        return parse_processes(await ask(self._layout.master_socket, "show proc"))

    async def reload(self) -> None:
        """Ask for a new worker with the present files. Whether it came is to be read from `processes`."""
        await ask(self._layout.master_socket, "reload")

    async def retire(self, pid: int) -> None:
        """Make an old worker send every further request to the newest one; see `config`. Idempotent.

        Raises:
            RuntimeApiError: it is gone, or did not take it.
        """
        pages_map, hosts_map = self._layout.pages_map, self._layout.hosts_map
        if RETIRED_KEY not in parse_map(await self._to(pid, f"show map {pages_map}")):
            answer = await self._to(pid, f"add map {pages_map} {RETIRED_KEY} {RETIRED_VALUE}")
            if answer.strip():
                raise RuntimeApiError(f"old worker {pid}: {answer.strip()[:200]}")
        await self._to(pid, f"clear map {hosts_map}")
        if parse_map(await self._to(pid, f"show map {hosts_map}")):
            raise RuntimeApiError(f"old worker {pid} keeps its routes")

    async def connections(self, pid: int) -> dict[Key, int]:
        """Connections in use of each server of an old worker."""
        return parse_connections(await self._to(pid, "show servers conn"))

    async def _to(self, pid: int, text: str) -> str:
        return await ask(self._layout.master_socket, f"@!{pid} {text}")


def command(layout: Layout, operation: Operation) -> str:
    """An operation as HAProxy's words. Names and addresses were parsed before (`targets`) or came from HAProxy."""
    match operation:
        case AddServer(key, slot):
            text = f"add server {_path(key)} {slot.address} weight {slot.weight} {SERVER_OPTIONS}"
        case SetState(key, state):
            text = f"set server {_path(key)} state {state}"
        case SetWeight(key, weight):
            text = f"set server {_path(key)} weight {weight}"
        case CutSessions(key):
            text = f"shutdown sessions server {_path(key)}"
        case DeleteServer(key):
            text = f"del server {_path(key)}"
        case TurnHost(host, backend, previous):
            text = f"{_put(previous)} {layout.hosts_map} {host} {backend}"
        case DropHost(host):
            text = f"del map {layout.hosts_map} {host}"
        case SetPage(host, page, previous):
            text = f"{_put(previous)} {layout.pages_map} {host} {page}"
        case DropPage(host):
            text = f"del map {layout.pages_map} {host}"
        case _:
            assert_never(operation)
    return text


def _path(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _put(previous: str | None) -> str:
    """`set map` fails on a missing key, and `add map` doubles a present one."""
    return "add map" if previous is None else "set map"


def _complaint(operation: Operation, answer: str) -> str:
    if isinstance(operation, AddServer):
        success = "New server registered."
    elif isinstance(operation, DeleteServer):
        success = "Server deleted."
    else:
        success = ""
    return "" if answer == success else answer or "no answer"


def batches(commands: Sequence[str]) -> Iterator[list[str]]:
    """Cut into lists that fit one request each."""
    batch: list[str] = []
    size = 0
    for text in commands:
        if batch and size + len(text) + 1 > MAX_REQUEST:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield batch


def split_answers(text: str, count: int) -> list[str]:
    """The answers of an interactive request, the one to `prompt` itself left out.

    Raises:
        RuntimeApiError: there are more or fewer than commands.
    """
    parts = text.split(_PROMPT)
    if len(parts) != count + 2 or parts[-1].strip():
        raise RuntimeApiError(f"{count} commands got {len(parts) - 2} answers")
    return [part.strip() for part in parts[1:-1]]


def parse_states(text: str) -> dict[Key, Server]:
    """`show servers state`, our backends only."""
    servers = {}
    for fields in _rows(text, 19):
        if fields[1].startswith(POOL_PREFIX):
            key = fields[1], fields[3]
            servers[key] = Server(_address(fields[4], fields[18]), _number(fields[7]), _state(_number(fields[6])))
    return servers


def _address(host: str, port: str) -> str:
    if host == "-":
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _state(admin: int) -> ServerState:
    if admin & _MAINT_BITS:
        return ServerState.MAINT
    return ServerState.DRAIN if admin & _DRAIN_BITS else ServerState.READY


def parse_connections(text: str) -> dict[Key, int]:
    """`show servers conn`, our backends only: `used_cur`, the connections that carry a request now."""
    found = {}
    for fields in _rows(text, 7):
        backend, _, server = fields[0].partition("/")
        if backend.startswith(POOL_PREFIX):
            found[backend, server] = _number(fields[6])
    return found


def parse_backends(text: str) -> list[str]:
    """`show backend`: the backends of the pool."""
    return [line for line in text.splitlines() if line.startswith(POOL_PREFIX)]


def parse_map(text: str) -> dict[str, str]:
    """`show map`: lines of reference, key, value. Of a doubled key the first counts, as in HAProxy.

    Raises:
        RuntimeApiError: HAProxy does not know the map.
    """
    entries: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not fields[0].startswith("0x"):
            raise RuntimeApiError(f"not a map: {line[:200]}")
        entries.setdefault(fields[1], fields[2])
    return entries


def parse_processes(text: str) -> Processes:
    """`show proc` of the master.

    Raises:
        RuntimeApiError: there is no current worker.
    """
    section, failed = "", 0
    workers: list[int] = []
    old: list[int] = []
    for line in text.splitlines():
        fields = line.split()
        if line.startswith("# "):
            section = line[2:].strip()
        elif len(fields) >= 2 and fields[1] == "worker":
            (old if section == "old workers" else workers).append(_number(fields[0]))
        elif len(fields) >= 5 and fields[1] == "master":
            failed = _number(fields[4].rstrip("]"))
    if not workers:
        raise RuntimeApiError("HAProxy has no worker")
    return Processes(workers[0], tuple(old), failed)


def _rows(text: str, least: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= least and not line.startswith("#"):
            yield fields


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise RuntimeApiError(f"not a number where HAProxy should give one: {text[:50]!r}")
    return int(text)


def _info_field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise RuntimeApiError(f"HAProxy does not tell its {name}")
