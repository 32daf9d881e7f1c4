"""Fetches the names that guests on this node may ask for and, together with them, the VMs of other nodes that security
groups name; only when they have changed. The engine keeps the names. Who is known is kept here, over a restart."""

from __future__ import annotations

from shellwego.agent.state import NodeState
from shellwego.core.assignments import Assignments
from shellwego.ports.engine import Engine
from shellwego.ports.uplink import NodeUplink


class Names:
    """Keeps the engine's names, and whom it knows, those that the control plane tells."""

    def __init__(self, engine: Engine, uplink: NodeUplink, state: NodeState) -> None:
        self._engine = engine
        self._uplink = uplink
        self._state = state
        self._told = ""
        self._identities: dict[str, tuple[str, ...]] = {}

    async def restore(self) -> None:
        """Whom it knew before a restart. To be called before the engine starts, which keeps what it knows then."""
        await self._engine.recognize(self._state.known)

    async def follow(self, assigned: Assignments) -> None:
        """Fetch the names if there are new ones. A server that tells of none leaves all as it is."""
        if assigned.names_version not in ("", self._told):
            names = await self._uplink.names(assigned.node_id)
            await self._engine.name(names.networks)
            self._identities = {app_id: each for net in names.networks for app_id, each in net.identities.items()}
            self._told = names.version
        if self._told:
            await self._recognize(assigned)

    async def _recognize(self, assigned: Assignments) -> None:
        """Of all VMs those of apps that the ingress of something here names: most are named by nothing."""
        openings = (opening for item in assigned.items for opening in item.workload.ingress or ())
        named = {opening.identity for opening in openings}
        known = {app_id: each for app_id, each in self._identities.items() if app_id in named}
        if known != self._state.known:
            await self._engine.recognize(known)
            await self._state.keep_known(known)
