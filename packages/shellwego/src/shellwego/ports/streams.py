"""Port: byte streams that reach a VM on any node: logs, exec, console, files.

A stream is duplex, with credit (a reader that stalls stops only its writer), half-close (`send_eof`) and cancel
(`aclose`). What the bytes mean is in `wire.streams`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class StreamKind(StrEnum):
    EXEC = "exec"
    LOGS = "logs"
    USAGE = "usage"
    """One record with what the VM takes of its host now."""
    ATTACH = "attach"
    """The workload's own input and output; letting go leaves it alone."""
    COPY_IN = "copy-in"
    """A tar stream of one tree on the way in; the exit code says how it went."""
    COPY_OUT = "copy-out"
    MEMORY = "memory"
    """A suspended VM as its engine exports it, for another node; an exit code of 0 ends one that is whole. Never for a
    user."""
    REPLICA = "replica"
    """A snapshot of a volume as its engine sends it, for another node; ends as a memory does. Never for a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    kind: StreamKind
    instance_id: str
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    rows: int = 0
    """With columns: run with a pty of that size."""
    columns: int = 0
    attempt: int = 0
    """Of logs: the newest attempt that is known, for a node that has no VM of the instance any more; 0: none is."""
    follow: bool = False
    tail: int = 100
    since: float = 0.0
    path: str = ""
    """Of a copy: what is given out, or where what comes in is put."""
    name: str = ""
    """Of a copy that comes in: what it is called, where `path` is a directory."""
    contents: bool = False
    """Of a copy that comes in: not the directory itself, but what is in it."""
    volume_id: str = ""
    """Of a replica: the volume, with the snapshot that is sent; a marker is taken first where it is not there."""
    snapshot_id: str = ""
    base_id: str = ""
    """The snapshot from which what differs is sent; empty: all of it."""
    quiet: bool = False
    """Only where the volume is closed, and no VM has it."""


class DuplexStream(Protocol):
    """Raises `UnavailableError` where the other side went away."""

    async def send(self, data: bytes) -> None:
        """Send bytes; waits while the other side has no room."""

    async def send_eof(self) -> None:
        """Nothing more will be sent; receiving goes on."""

    async def receive(self) -> bytes:
        """Some bytes; empty at the end."""

    async def aclose(self) -> None:
        """Cancel both directions. Idempotent."""


class Streams(Protocol):
    async def open(self, node_id: str, request: StreamRequest) -> DuplexStream:
        """Open a stream to a node. `UnavailableError` where the node cannot be reached."""


StreamHandler = Callable[[StreamRequest, DuplexStream], Awaitable[None]]
"""The agent's side: serves one request; the stream is closed when it returns."""


class StreamListener(Protocol):
    async def serve(self, node_id: str, handler: StreamHandler) -> None:
        """Take requests for this node until cancelled."""
