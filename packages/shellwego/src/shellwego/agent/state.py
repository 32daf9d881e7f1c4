"""What an agent must still know after a restart: who it is, the highest epoch it saw, its peers, the published
ports, whose the VMs of other nodes are, and numbers not used yet.

The control plane ignores reports whose sequence is not above the last one, and a node has no clock that it may send. So the
sequence goes on from a limit on disk: numbers are reserved in blocks before the first of a block is used, and a restart
throws the rest of its block away.

Theory. Two files. `node.slots` has what an agent cannot speak without: its id, the epoch, the limit. Each is there before it
is acted upon, and can be written on a full disk. `node.json` has all, and is replaced as a whole. Its peers, ports and known
VMs are written when the engine has them already. Where the disk is full they wait, and a restart finds older ones, which is
what it would find where no server can be asked. Of id, epoch and limit the higher counts: an agent of the version before
knows `node.json` alone.

Nothing here waits for a disk in the event loop: one that stands still would make a node mute that is well. So the next block
is reserved when half of the last one is used, and only who needs a thing to be stored waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import structlog

from shellwego.agent.slots import Slots, replace_file
from shellwego.agent.waiting import cancel_all, to_its_end
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.peers import PeerNode
from shellwego.core.publishing import OpenPort

BLOCK = 10_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vital:
    node_id: str = ""
    epoch: int = 0
    sequence_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    node_id: str = ""
    epoch: int = 0
    sequence_limit: int = 0
    peers: tuple[PeerNode, ...] = ()
    ports: tuple[OpenPort, ...] = ()
    key_step: int = 0
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def vital(self) -> _Vital:
        return _Vital(node_id=self.node_id, epoch=self.epoch, sequence_limit=self.sequence_limit)


class NodeState:
    """The agent's memory in `directory`; `aside` does what waits for the disk.

    Raises:
        InvalidError: a file is there and is not one that this class wrote.
    """

    def __init__(
        self,
        directory: Path,
        aside: Callable[[Callable[[_Stored], None], _Stored], Awaitable[None]] = asyncio.to_thread,
    ) -> None:
        self._directory = directory
        self._aside = aside
        self._lock = asyncio.Lock()
        self._reserving: asyncio.Task[None] | None = None
        self._behind = False
        """`node.json` is older than what is known here."""
        self._stored = self._load()
        self._sequence = self._stored.sequence_limit

    @property
    def node_id(self) -> str:
        """Empty before the first registration."""
        return self._stored.node_id

    @property
    def epoch(self) -> int:
        """The highest seen."""
        return self._stored.epoch

    @property
    def peers(self) -> tuple[PeerNode, ...]:
        """The nodes with a way from here, as they were told last."""
        return self._stored.peers

    @property
    def key_step(self) -> int:
        """How far the exchange of keys with them was."""
        return self._stored.key_step

    async def keep_peers(self, peers: tuple[PeerNode, ...], key_step: int = 0) -> None:
        """Note those that were told; on disk when this returns, if the disk has room."""
        if self._behind or (peers, key_step) != (self.peers, self.key_step):
            await self._save(lambda stored: replace(stored, peers=peers, key_step=key_step))

    @property
    def ports(self) -> tuple[OpenPort, ...]:
        """The published ports, as they were told last."""
        return self._stored.ports

    async def keep_ports(self, ports: tuple[OpenPort, ...]) -> None:
        """Note those that were told; as `keep_peers`."""
        if ports != self.ports:
            await self._save(lambda stored: replace(stored, ports=ports))

    @property
    def known(self) -> Mapping[str, tuple[str, ...]]:
        """Private addresses of other nodes' VMs, by the ids of their apps, as they were told last."""
        return self._stored.known

    async def keep_known(self, known: Mapping[str, tuple[str, ...]]) -> None:
        """Note those that were told; as `keep_peers`."""
        if known != self.known:
            await self._save(lambda stored: replace(stored, known=known))

    async def accept(self, node_id: str, epoch: int) -> bool:
        """Take over a message's id and epoch, on disk before it is acted upon. False: it is of an older epoch.

        Raises:
            UnavailableError: the disk does not take them.
        """
        if epoch < self.epoch:
            return False
        if (node_id, epoch) != (self.node_id, self.epoch):
            await self._save(lambda stored: replace(stored, node_id=node_id, epoch=epoch))
        return True

    async def next_sequence(self) -> int:
        """A number above every earlier one, also those given before a crash.

        Raises:
            UnavailableError: there is none left, and the disk does not take that there are more.
        """
        if self._sequence >= self._stored.sequence_limit:
            await self._reserve()
        elif self._runs_out() and (self._reserving is None or self._reserving.done()):
            self._reserving = asyncio.create_task(self._reserve_early(), name="reserve sequences")
        self._sequence += 1
        return self._sequence

    async def close(self) -> None:
        """Let what is under way come to its end."""
        if self._reserving is not None:
            await cancel_all([self._reserving])

    def _runs_out(self) -> bool:
        return self._stored.sequence_limit - self._sequence <= BLOCK // 2

    async def _reserve_early(self) -> None:
        try:
            await self._reserve()
        except UnavailableError as error:
            _log.warning("agent.numbers_not_reserved", reason=error.message, resolution=error.resolution)

    async def _reserve(self) -> None:
        await self._save(
            lambda stored: replace(stored, sequence_limit=stored.sequence_limit + BLOCK) if self._runs_out() else stored
        )

    async def _save(self, change: Callable[[_Stored], _Stored]) -> None:
        """Store what becomes of what is stored; it is known here once that is done."""
        async with self._lock:
            stored = change(self._stored)
            if stored == self._stored and not self._behind:
                return
            try:
                await to_its_end(self._aside(self._write, stored))
            except OSError as error:
                raise UnavailableError(
                    "agent-state-not-stored",
                    f"what the agent must know after a restart cannot be written to {self._directory}: {error}",
                    resolution="See that the disk is well, and can be written to.",
                ) from error
            self._stored = stored

    # On the disk

    def _load(self) -> _Stored:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._json = self._directory / "node.json"
        self._slots = Slots(self._directory / "node.slots")
        stored = self._all()
        if self._slots.content is not None:
            stored = _joined(stored, msgspec.json.decode(self._slots.content, type=_Vital))
        else:
            self._make_slots(stored.vital)
        return stored

    def _all(self) -> _Stored:
        """As it is in `node.json`."""
        try:
            return msgspec.json.decode(self._json.read_bytes(), type=_Stored)
        except FileNotFoundError:
            return _Stored()
        except msgspec.DecodeError as error:
            raise InvalidError(
                "agent-state-unreadable",
                f"{self._json} is not the agent's state: {error}",
                resolution=f"Remove all files of {self._directory}; the node then registers anew under its name.",
            ) from error

    def _make_slots(self, vital: _Vital) -> None:
        """Have room from the start; else it is tried again with the first thing that is to be stored."""
        try:
            self._slots.write(msgspec.json.encode(vital))
        except OSError as error:
            _log.warning("agent.state_not_stored", reason=str(error))

    def _write(self, stored: _Stored) -> None:
        """In a thread. What is vital is there when this returns; the rest may wait for a better time.

        Raises:
            OSError: that is not.
        """
        vital = msgspec.json.encode(stored.vital)
        if vital != self._slots.content:
            self._slots.write(vital)
        try:
            replace_file(self._json, msgspec.json.encode(stored))
        except OSError as error:
            if not self._behind:
                _log.warning("agent.state_not_stored", reason=str(error))
            self._behind = True
        else:
            self._behind = False


def _joined(stored: _Stored, vital: _Vital) -> _Stored:
    """What counts of two files, of which either may be the older."""
    newer = vital
    if (stored.epoch, stored.sequence_limit) > (vital.epoch, vital.sequence_limit):
        newer = stored.vital
    limit = max(stored.sequence_limit, vital.sequence_limit)
    return replace(stored, node_id=newer.node_id, epoch=newer.epoch, sequence_limit=limit)
