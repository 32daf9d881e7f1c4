"""Where the servers of this platform are, as each of them says and as nodes and edges are told; see `core.servers`."""

from __future__ import annotations

from dataclasses import replace

import structlog

from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ShellWeGoError
from shellwego.core.servers import SAY_S, Server, urls_of
from shellwego.ports.store import Transaction

KNOWN_S = 1.0
"""The list is read once a while, and not for each node that asks."""

_log = structlog.get_logger(__name__)


class Servers:
    """One server's end: says its own URLs, and knows all."""

    def __init__(self, control: Control, name: str, urls: tuple[str, ...]) -> None:
        """`name` is that of no other server; without `urls` it says nothing, and hosts stay with what they know."""
        self._control = control
        self._name = name
        self._urls = urls
        self._told: tuple[str, ...] = ()
        self._until = float("-inf")

    async def say(self) -> None:
        """Tell the others, once."""
        if self._urls:
            await self._control.commit(lambda unit: say(unit, self._name, self._urls))

    async def keep_saying(self) -> None:
        """Tell them again and again, until cancelled."""
        while True:
            await self._control.clock.sleep(SAY_S)
            try:
                await self.say()
            except ShellWeGoError as error:
                _log.warning("servers.not_said", reason=error.message)

    async def told(self) -> tuple[str, ...]:
        """All that nodes and edges are told; empty where no server says anything."""
        now = self._control.clock.monotonic()
        if now >= self._until:
            self._told, self._until = await self._control.read(listed), now + KNOWN_S
        return self._told


def say(unit: Unit, name: str, urls: tuple[str, ...]) -> None:
    """Note what one server says."""
    known = unit.tx.servers.get(name)
    if known is None:
        unit.tx.servers.insert(Server(id=name, urls=urls, seen_at=unit.now()))
    else:
        unit.tx.servers.update(replace(known, urls=urls, seen_at=unit.now()))


def listed(tx: Transaction) -> tuple[str, ...]:
    """What nodes and edges are told now."""
    return urls_of(tx.servers.select(), tx.now())
