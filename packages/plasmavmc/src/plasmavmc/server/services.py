"""The services of this host: what `rpc.services` joins, over the engine."""

from __future__ import annotations

from plasmavmc.backends import Readiness
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.rpc.services import Services
from plasmavmc.server.engine import EngineVms
from plasmavmc.server.images import EngineImages
from plasmavmc.server.node import EngineNode


class EngineServices(Services):
    """See the module's head."""

    def __init__(self, vms: EngineVms, images: EngineImages, node: EngineNode) -> None:
        super().__init__(vms, images, node)
        self.images = images
        self._vms = vms
        self._node = node

    async def follow(self) -> None:
        """Tell watchers of every change, for ever."""
        await self._vms.follow()

    async def settled(self, registry: HypervisorRegistry) -> None:
        """The backends were probed: health says whether VMs can be made, and watchers of nodes hear of it."""
        await self.tell_ready(ready=any(status.readiness is Readiness.READY for status in registry.statuses()))
        self._node.tell_news()
