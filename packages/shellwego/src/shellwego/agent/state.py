"""What an agent must still know after a restart: who it is, the highest epoch it saw, its peers, the published
ports, whose the VMs of other nodes are, and numbers not used yet.

The control plane ignores reports whose sequence is not above the last one, and a node has no clock that it may send. So the
sequence goes on from a limit on disk: numbers are reserved in blocks before the first of a block is used, and a restart
throws the rest of its block away. The file is replaced as a whole and synced; a torn write leaves the old one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from shellwego.core.errors import InvalidError
from shellwego.core.peers import PeerNode
from shellwego.core.publishing import OpenPort

BLOCK = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    node_id: str = ""
    epoch: int = 0
    sequence_limit: int = 0
    peers: tuple[PeerNode, ...] = ()
    ports: tuple[OpenPort, ...] = ()
    key_step: int = 0
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class NodeState:
    """The agent's memory in `directory/node.json`.

    Raises:
        InvalidError: the file is there and is not one that this class wrote.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "node.json"
        directory.mkdir(parents=True, exist_ok=True)
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

    def keep_peers(self, peers: tuple[PeerNode, ...], key_step: int = 0) -> None:
        """Note those that were told; on disk at once."""
        if (peers, key_step) != (self.peers, self.key_step):
            self._save(replace(self._stored, peers=peers, key_step=key_step))

    @property
    def ports(self) -> tuple[OpenPort, ...]:
        """The published ports, as they were told last."""
        return self._stored.ports

    def keep_ports(self, ports: tuple[OpenPort, ...]) -> None:
        """Note those that were told; on disk at once."""
        if ports != self.ports:
            self._save(replace(self._stored, ports=ports))

    @property
    def known(self) -> Mapping[str, tuple[str, ...]]:
        """Private addresses of other nodes' VMs, by the ids of their apps, as they were told last."""
        return self._stored.known

    def keep_known(self, known: Mapping[str, tuple[str, ...]]) -> None:
        """Note those that were told; on disk at once."""
        if known != self.known:
            self._save(replace(self._stored, known=known))

    def accept(self, node_id: str, epoch: int) -> bool:
        """Take over a message's id and epoch, on disk before it is acted upon. False: it is of an older epoch."""
        if epoch < self.epoch:
            return False
        if (node_id, epoch) != (self.node_id, self.epoch):
            self._save(replace(self._stored, node_id=node_id, epoch=epoch))
        return True

    def next_sequence(self) -> int:
        """A number above every earlier one, also those given before a crash."""
        if self._sequence >= self._stored.sequence_limit:
            self._save(replace(self._stored, sequence_limit=self._stored.sequence_limit + BLOCK))
        self._sequence += 1
        return self._sequence

    def _load(self) -> _Stored:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Stored)
        except FileNotFoundError:
            return _Stored()
        except msgspec.DecodeError as error:
            raise InvalidError(
                "agent-state-unreadable",
                f"{self._path} is not the agent's state: {error}",
                resolution="Remove the file; the node then registers anew under its name.",
            ) from error

    def _save(self, stored: _Stored) -> None:
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(stored))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._stored = stored
