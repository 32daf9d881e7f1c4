"""Hosts with real agents, one control plane, and an app with a volume of which a standby copy is kept."""

from __future__ import annotations

from shellwego.control import standbys
from shellwego.core.replicas import Replica, ReplicaPurpose
from shellwego.core.volumeleases import OVER_S
from shellwego.core.volumes import VolumeState
from tests.agent.move_world import Host
from tests.agent.volume_move_world import VolumeHosts

EVERY_S = 30
LATER = "what was written last"
AFTER_S = OVER_S + 60


class StandbyHosts(VolumeHosts):
    """`old` has the volume, `new` its standby; a third may join."""

    async def _count(self) -> None:
        while True:  # what runs by mistake does so for seconds
            await self.clock.sleep(0.1)
            self.most_owners = max(self.most_owners, len(self.owners()))

    async def replicate(self, name: str = "new", **wish: bool) -> None:
        node = next((self.row(host) for host in self.all if host.name == name), None)
        await self.world.control.commit(lambda unit: standbys.replicate(unit, self.volume, EVERY_S, node, **wish))

    async def protected(self) -> None:
        """The standby holds a round, and the volume's node enforces leases."""
        await self.replicate()
        await self.clock.until(lambda: self.standby.taken_at is not None and self.volume.observed.leased, 60)

    @property
    def standby(self) -> Replica:
        return next(each for each in self.kept if each.purpose is ReplicaPurpose.STANDBY)

    @property
    def left(self) -> list[Replica]:
        return [each for each in self.kept if each.purpose is ReplicaPurpose.LEFT]

    async def serves_from(self, host: Host, timeout_s: float = AFTER_S) -> None:
        def serving() -> bool:
            live = self.world.live()
            return [i.node_id for i in live] == [host.id] and len(self.edge.endpoints()) == 1 and self.settled()

        await self.clock.until(serving, timeout_s)
        assert self.most_owners == 1

    def settled(self) -> bool:
        return self.volume.state is VolumeState.ATTACHED
