"""The ways to other nodes, as the control plane tells them; they stand before anything runs, whoever can be asked."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from shellwego.agent.state import NodeState
from shellwego.core.peers import PeerNode
from shellwego.ports.clock import Clock
from shellwego.ports.engine import Engine

TELL_AGAIN_S = 30.0

_log = structlog.get_logger(__name__)


class Peers:
    """Keeps the engine's peers those that were told last."""

    def __init__(self, engine: Engine, state: NodeState, clock: Clock) -> None:
        self._engine = engine
        self._state = state
        self._clock = clock
        self._lacking: tuple[PeerNode, ...] = ()
        self._due = 0.0
        """When the engine is told again, though nothing is new."""

    async def restore(self) -> None:
        """As they were before a restart. To be called before the engine starts, which keeps what it knows then."""
        await self._engine.connect(self._state.peers, self._state.key_step)

    async def follow(self, peers: Sequence[PeerNode], key_step: int = 0) -> None:
        """Take over what was told. Where nothing is new that is done now and then all the same: a way may be there now
        that was not, or may have been taken away."""
        told, now = tuple(peers), self._clock.monotonic()
        if (told, key_step) == (self._state.peers, self._state.key_step) and now < self._due:
            return
        lacking = await self._engine.connect(told, key_step)
        await self._state.keep_peers(told, key_step)
        self._due = now + TELL_AGAIN_S
        if lacking != self._lacking:
            self._lacking = lacking
            unreached = [f"{peer.subnet} via {peer.address}" for peer in lacking]
            _log.warning("agent.peers_unreached" if lacking else "agent.peers_reached", peers=unreached)
