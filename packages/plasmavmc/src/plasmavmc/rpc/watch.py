"""The history of VMs, for watchers that come, go, and come back.

Theory. A `History` takes note of the whole set of VMs each time that something changed, and keeps what differs: a bounded
row of changes, each with a revision. Watchers share it; one holds nothing but the revision that it has read up to. One
that asks for what is no longer kept, or was another server's (the epoch differs), gets a snapshot again. So a reader that
stalls costs no memory, and loses no more than the steps between.

Tokens on the wire are `epoch.revision`; they grant nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence

from plasmavmc.errors import InvalidSpecError
from plasmavmc.rpc.api import Position, SnapshotBegun, SnapshotDone, SnapshotVm, VmChange, VmEvent
from plasmavmc.types import Vm

KEPT_CHANGES = 4096
_TOKEN = re.compile(r"([0-9a-f]{16})\.([0-9]{1,18})")


def token_of(position: Position) -> str:
    return f"{position.epoch}.{position.revision}"


def position_of(token: str) -> Position | None:
    """Where to go on; None for the empty token.

    Raises:
        InvalidSpecError: `resume_token`, it is no token.
    """
    if not token:
        return None
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise InvalidSpecError("resume_token", "it is no token of a watch", resolution="Begin anew: leave it empty.")
    return Position(match[1], int(match[2]))


class History:
    """See the module's head. Not thread-safe."""

    def __init__(self, *, kept: int = KEPT_CHANGES) -> None:
        self._epoch = secrets.token_hex(8)
        self._changes: deque[VmChange] = deque(maxlen=kept)
        self._vms: Mapping[str, Vm] = {}
        self._revision = 0
        self._news = asyncio.Event()

    def note(self, vms: Sequence[Vm]) -> None:
        """Take note of all VMs as they are now."""
        present = {vm.spec.id: vm for vm in vms}
        before = self._vms
        for vm_id in sorted(before.keys() | present.keys()):
            old, new = before.get(vm_id), present.get(vm_id)
            if old != new:
                self._revision += 1
                self._changes.append(VmChange(old, new, Position(self._epoch, self._revision)))
        self._vms = present
        self._news.set()
        self._news = asyncio.Event()

    async def read(self, after: Position | None) -> AsyncGenerator[VmEvent]:
        """Every change after a position, for ever; a snapshot where they are not known."""
        revision = -1 if after is None or after.epoch != self._epoch else after.revision
        while True:
            if not self._knows(revision):
                vms, revision = self._vms, self._revision
                yield SnapshotBegun()
                for vm_id in sorted(vms):
                    yield SnapshotVm(vms[vm_id])
                yield SnapshotDone(Position(self._epoch, revision))
            elif revision < self._revision:
                change = self._changes[revision - self._revision]
                revision = change.position.revision
                yield change
            else:
                await self._news.wait()

    def _knows(self, revision: int) -> bool:
        """Whether all changes after this revision are kept."""
        return self._revision - len(self._changes) <= revision <= self._revision
