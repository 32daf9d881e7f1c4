"""`swg agent` and `swg edge`: the processes of a host that joined. They dial their servers, and serve on without them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version

from shellwego.agent.daemon import Agent
from shellwego.agent.state import NodeState
from shellwego.boot.hintroad import HintRoad, enter_nats
from shellwego.boot.hosting import address_towards, edge_settings, engine_site
from shellwego.boot.membership import Membership
from shellwego.boot.nodedir import Joined
from shellwego.boot.preflight import Installation, directory
from shellwego.boot.serverlist import ServerList
from shellwego.boot.serving import Part, dismantle, serve, stop_signal, undo
from shellwego.boot.settings import UpSettings
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.assembly import HostLink, open_plasma
from shellwego.drivers.images.pulled import PulledBlobs
from shellwego.drivers.objects.choose import open_objects
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.streams.dialled import DialledListener
from shellwego.drivers.uplink.downloads import Downloads
from shellwego.drivers.uplink.tls import TlsEdgeUplink, TlsNodeUplink, UplinkChannel
from shellwego.edge.daemon import Edge


@dataclass(frozen=True, slots=True)
class Wires:
    """The ways to the servers."""

    clock: SystemClock
    hints: MemoryBus
    """Of this process: what servers say, on whichever road, is heard here."""
    road: HintRoad
    servers: ServerList
    membership: Membership
    channel: UplinkChannel
    listener: DialledListener


@dataclass(frozen=True, slots=True)
class Remote:
    """One process of a joined host."""

    settings: UpSettings
    installation: Installation
    joined: Joined
    link: int
    """Descriptor of the way to the root helper."""

    async def run_agent(self) -> int:
        """Run VMs until the end is asked for."""
        stop = stop_signal()
        async with AsyncExitStack() as stack:
            link = await self._open(stack)
            wires = self._wires(stack)
            member, keep = self.joined.member, self.settings.keep_vms
            address = self.settings.address or address_towards(wires.servers.urls())
            site = engine_site(self.settings, self.installation, address, member.subnet)
            downloads = Downloads(wires.servers.urls, wires.membership.credentials)
            engine = await open_plasma(link, site, version("shellwego"), lambda: (), PulledBlobs(downloads.blob))
            agent = Agent(
                engine=engine,
                uplink=TlsNodeUplink(wires.channel),
                listener=wires.listener,
                bus=wires.hints,
                clock=wires.clock,
                name=member.name,
                state=NodeState(directory(self.installation, f"agent-{member.id}")),
                offer=self.settings.offer,
                address=address,
                memories=downloads,
                replicas=downloads,
                hints=lambda: wires.road.road,
                open_objects=open_objects,
            )
            parts = {"agent": agent.run(), **self._kept(wires), "helper": link.gone()}
            vms = "microVMs go on running" if keep else "microVMs are stopped first"
            code = await serve(parts, (), self._tell(agent), stop, f"swg agent: stopping; {vms}")
            await engine.close(keep_vms=keep or code != 0)
            if not keep and code == 0:
                await dismantle(link)
        return code

    async def run_edge(self) -> int:
        """Take requests until the end is asked for."""
        stop = stop_signal()
        async with AsyncExitStack() as stack:
            link = await self._open(stack)
            wires = self._wires(stack)
            settings = self.settings
            edge = Edge(
                TlsEdgeUplink(wires.channel),
                wires.hints,
                wires.clock,
                edge_settings(self.joined.member.name, self.installation, self.settings),
                listen=lambda: link.listen(settings.edge_address, settings.http_port),
                place=link.place_edge,
            )
            await edge.open()
            parts = {"edge": edge.run(), "links": wires.listener.follow(), **self._kept(wires), "helper": link.gone()}
            code = await serve(parts, (), self._tell(None), stop, "swg edge: stopping")
            keep = settings.keep_vms or code != 0
            await edge.close(keep=keep)
            if not keep:
                await dismantle(link)
        return code

    async def _open(self, stack: AsyncExitStack) -> HostLink:
        link = HostLink(self.link)
        stack.callback(link.close)
        stack.push_async_exit(undo(link))
        return link

    def _wires(self, stack: AsyncExitStack) -> Wires:
        clock, hints = SystemClock(), MemoryBus()
        kept, member = directory(self.installation, "membership"), self.joined.member
        membership = Membership(self.joined, kept, clock)
        servers = ServerList(member.servers, kept)
        channel = UplinkChannel(servers.urls, membership.credentials, answered=servers.answered)
        stack.push_async_callback(channel.close)
        road = HintRoad(member.id, hints, clock, enter_nats)
        listener = DialledListener(servers.urls, WebSocketDialler(membership.credentials), road)
        return Wires(clock, hints, road, servers, membership, channel, listener)

    def _kept(self, wires: Wires) -> dict[str, Part]:
        return {
            "membership": wires.membership.keep(wires.channel),
            "servers": wires.servers.follow(wires.channel, wires.clock),
            "hints": wires.road.keep(wires.channel),
        }

    async def _tell(self, agent: Agent | None) -> None:
        if agent is not None:
            await agent.registered()
        member = self.joined.member
        print(
            f"This host is the {member.kind} {member.name} ({member.id}) of the platform at {member.servers[0]}.\n"
            f"  data     {self.installation.data_dir}",
            flush=True,
        )
