"""The last routes on disk: what HAProxy is rebuilt from while the control plane is away.

Written whole to a new file, synced, and renamed, so that a crash at any moment leaves the old or the new one. Beside the
table stands which app had which backend: an edge that adopts a running HAProxy then finds each app where it is. Without
that knowledge (no file, or a damaged one) every app gets a new backend beside; no request is lost, and none can reach a
backend that another tenant's servers are still in.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shellwego.core.routing import RouteTable

FORMAT = 1
FILE = "routes.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRoutes:
    """What was applied last."""

    table: RouteTable
    backends: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT


class RoutesFile:
    """`routes.json` of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE

    async def load(self) -> LastRoutes | None:
        """The last routes; None where there are none, or none that can be understood."""
        try:
            last = msgspec.json.decode(await asyncio.to_thread(self._path.read_bytes), type=LastRoutes)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return last if last.format == FORMAT else None

    async def save(self, last: LastRoutes) -> None:
        """Replace the file, durably.

        Raises:
            OSError: the disk is full, or not ours.
        """
        await asyncio.to_thread(write_atomic, self._path, msgspec.json.encode(last), sync=True)


def write_atomic(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Replace a file in one step; with `sync`, so that it outlives a power cut."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
    if sync:
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
