"""Changes of VMs, for those who watch: the platform's records, compared with themselves.

Nobody watching costs nothing: the records are read while somebody watches, at each hint and each second. Between two
watchers nothing is missed, for what is compared is the whole of them: who comes back with a position hears what differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import structlog

from plasmavmc.rpc.api import Position, VmEvent
from plasmavmc.rpc.watch import History
from plasmavmc.types import Vm
from shellwego.api.grpc.errors import translated
from shellwego.api.grpc.views import vm_view
from shellwego.control.events import changes
from shellwego.control.unit import Control
from shellwego.control.vms import known_vms
from shellwego.core.errors import ShellWeGoError
from shellwego.ports.store import Transaction
from shellwego.wire import subjects

_log = structlog.get_logger(__name__)


class VmFeed:
    """See the module's head. One for all watchers."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._history = History()
        self._watchers = 0
        self._following: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()

    async def watch(self, after: Position | None) -> AsyncGenerator[VmEvent]:
        """See `plasmavmc.rpc.api.VmApi.watch`."""
        async with self._followed(), aclosing(self._history.read(after)) as events:
            async for event in events:
                yield event

    @asynccontextmanager
    async def _followed(self) -> AsyncIterator[None]:
        """The records are followed as long as anybody is in here."""
        with translated():
            await self._note()
        self._watchers += 1
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="changes of VMs")
        try:
            yield
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._following is not None:
                self._following.cancel()
                self._following = None

    async def _follow(self) -> None:
        async with aclosing(changes(self._control, subjects.ALL_APPS)) as ticks:
            async for _ in ticks:
                try:
                    await self._note()
                except Exception as error:  # noqa: BLE001 - whatever it is, watchers wait for the next look
                    trace = None if isinstance(error, ShellWeGoError) else error
                    _log.error("grpc.changes_not_read", reason=str(error), exc_info=trace)

    async def _note(self) -> None:
        def look(tx: Transaction) -> list[Vm]:
            return [vm_view(known) for known in known_vms(tx)]

        async with self._reading:  # or an older reading might be noted after a newer one
            self._history.note(await self._control.read(look))
