"""The published ports at which this node answers: fetched where they are others than those known, kept over a restart."""

from __future__ import annotations

from shellwego.agent.state import NodeState
from shellwego.core.assignments import Assignments
from shellwego.ports.engine import Engine
from shellwego.ports.uplink import NodeUplink


class Ports:
    """Keeps the engine's published ports those that the control plane tells."""

    def __init__(self, engine: Engine, uplink: NodeUplink, state: NodeState) -> None:
        self._engine = engine
        self._uplink = uplink
        self._state = state
        self._told = ""

    async def restore(self) -> None:
        """As they were before a restart. To be called before the engine starts, which keeps what it knows then."""
        await self._engine.publish(self._state.ports)

    async def follow(self, assigned: Assignments) -> None:
        """Fetch the ports if there are new ones. A server that tells of none leaves them as they are."""
        if assigned.ports_version in ("", self._told):
            return
        ports = await self._uplink.ports(assigned.node_id)
        await self._engine.publish(ports.ports)
        await self._state.keep_ports(ports.ports)
        self._told = ports.version
