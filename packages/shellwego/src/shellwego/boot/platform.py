"""The platform in one process: control plane, agent and edge on one host, joined and run to their end.

Theory. Everything that can fail with a remedy (ports, programs, a broken database) happens before `ready` is said. At an
asked end without `keep_vms`, VMs are stopped gracefully, then HAProxy, then bridge, rules and cgroups are taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from shellwego.agent.daemon import Agent
from shellwego.agent.state import NodeState
from shellwego.boot.controlplane import Handover, open_base, open_control_plane
from shellwego.boot.credentials import LOCAL
from shellwego.boot.hosting import edge_processes, edge_settings, engine_site
from shellwego.boot.preflight import Installation, directory
from shellwego.boot.serving import Server, dismantle, run_process, serve, stop_signal, undo
from shellwego.boot.settings import UpSettings
from shellwego.control.edges import Edges
from shellwego.control.memories import NodeMemories
from shellwego.control.nodes import Nodes
from shellwego.control.replicastreams import NodeReplicas
from shellwego.drivers.engine.assembly import HostLink, open_plasma
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from shellwego.drivers.objects.choose import open_objects
from shellwego.drivers.streams.dialled import DialledStreams
from shellwego.drivers.streams.either import EitherStreams
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryEdgeUplink, MemoryLink, MemoryNodeUplink
from shellwego.edge.daemon import Edge

NODE = "local"
EDGE = "local"


def run_platform(settings: UpSettings, installation: Installation, handover: Handover) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Called as the unprivileged user."""
    return run_process("swg up", Platform(settings, installation, handover).run)


@dataclass(slots=True)
class Platform:
    """Everything of one installation, in the order of its making."""

    settings: UpSettings
    installation: Installation
    handover: Handover

    async def run(self) -> int:
        """Open, serve, close."""
        stop = stop_signal()
        async with AsyncExitStack() as stack:
            link = HostLink(self.handover.link)
            stack.callback(link.close)
            stack.push_async_exit(undo(link))
            api_socket = await link.listen(self.settings.api_listen, self.settings.api_port)
            owner = self.installation.id
            base = await open_base(stack, self.settings, self.installation, self.handover, owner=owner)
            control = base.control
            site = edge_settings(EDGE, self.installation, self.settings)
            engine = await open_plasma(
                link,
                engine_site(self.settings, self.installation, self.settings.host_address),
                version("shellwego"),
                lambda: edge_processes(site),
            )
            streams, links = MemoryStreams(), DialledStreams()
            reach = EitherStreams(links, streams)
            wire = MemoryLink(control.clock)
            edge = Edge(
                MemoryEdgeUplink(Edges(control), wire),
                control.bus,
                control.clock,
                site,
                listen=lambda: link.listen(self.settings.edge_address, self.settings.http_port),
                place=link.place_edge,
            )
            await edge.open()
            agent = Agent(
                engine=engine,
                uplink=MemoryNodeUplink(
                    Nodes(
                        control,
                        base.sealer,
                        self.handover.repository,
                        key_generation_s=self.settings.key_generation_s,
                        traffic=base.traffic,
                    ),
                    wire,
                ),
                listener=streams,
                bus=control.bus,
                clock=control.clock,
                name=NODE,
                state=NodeState(directory(self.installation, "agent")),
                offer=self.settings.offer,
                address=self.settings.host_address,
                memories=NodeMemories(control, reach),
                replicas=NodeReplicas(control, reach),
                open_objects=open_objects,
            )
            plane = await open_control_plane(base, link, api_socket, reach, links)
            parts = {"agent": agent.run(), "edge": edge.run(), **plane.parts, "helper": link.gone()}
            vms = "microVMs go on running" if self.settings.keep_vms else "microVMs are stopped first"
            ready = self._tell_when_ready(plane.servers, agent)
            leave = partial(plane.leave, self.settings.shutdown_delay)
            code = await serve(parts, plane.servers, ready, stop, f"swg up: stopping; {vms}", leave=leave)
            await self._end(engine, edge, link, keep=self.settings.keep_vms or code != 0)
        return code

    async def _tell_when_ready(self, servers: Sequence[Server], agent: Agent) -> None:
        for server in servers:
            await server.started()
        await agent.registered()
        url, port = self.settings.api_url, self.settings.http_port
        host = f"<app>.{self.settings.domain}"
        grpc = f"  gRPC     {self.settings.grpc_address}  (plasmavmc.v1)\n" if self.settings.grpc_port else ""
        nodes = (
            f"  nodes    {self.settings.node_addresses[0]}  (swg nodes join-token)\n" if self.settings.node_port else ""
        )
        print(
            f"ShellWeGo is ready.\n"
            f"  API      {url}  (docs: {url}/docs)\n"
            f"{grpc}{nodes}"
            f"  apps     {self.settings.apps_url}\n"
            f"           curl -H 'Host: {host}' http://127.0.0.1:{port}/\n"
            f"  data     {self.installation.data_dir}\n"
            f"  context  {LOCAL}, also {self.handover.context} (swg --help; swg nodes ls)",
            flush=True,
        )

    async def _end(self, engine: PlasmaEngine, edge: Edge, link: HostLink, *, keep: bool) -> None:
        await engine.close(keep_vms=keep)
        await edge.close(keep=keep)
        if not keep:
            await dismantle(link)
