"""What rules of ingress let VMs of one network open to one of them, by who asks, protocol and port, against real packets.

Two nodes, VMs are namespaces: `db` has rules; `web` and `job` are on its node, `far` is on the other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from time import monotonic

import pytest
import pytest_asyncio

from plasmavmc.host.operations import Source
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.policy import Ingress, IpProtocol, Opening
from plasmavmc.types import vm_key
from tests.real import network_truth as truth
from tests.real.network_world import Vm, Wire
from tests.real.test_network_peers import Node, Nodes, nic, nodes_in

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
KINDS = (*truth.KINDS, *truth.PORTS)
EVERYTHING = set(KINDS)
DB = vm_key("nic_project_2")
TCP, UDP, ICMP = IpProtocol.TCP, IpProtocol.UDP, IpProtocol.ICMP
DATABASE = Opening("web", TCP, 5432, 5432)


@dataclass(frozen=True, slots=True)
class World:
    nodes: Nodes
    web: Vm
    job: Vm

    @property
    def home(self) -> Node:
        """Where the rules are."""
        return self.nodes.two

    @property
    def db(self) -> Vm:
        return self.nodes.two.vm

    @property
    def far(self) -> Vm:
        return self.nodes.one.vm

    async def screen(self, *openings: Opening) -> None:
        await self.home.network.screen(DB, "db", openings)

    async def recognize(self, identity: str) -> None:
        """Tell the rules' node who `far` is; empty: it is not known."""
        address = self.far.attachment.lease.ipv6
        assert address is not None
        await self.home.network.recognize([Source(identity, address)] if identity else [])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as undo:
        nodes = await undo.enter_async_context(nodes_in(tmp_path_factory.mktemp("groups")))
        await nodes.one.network.connect([nodes.two.told])
        await nodes.two.network.connect([nodes.one.told])
        wire = Wire()
        undo.callback(wire.stop)
        vms = [await add_vm(nodes.two.network, name, wire, undo) for name in ("web", "job")]
        yield World(nodes, *vms)


async def add_vm(network: BridgeNetwork, name: str, wire: Wire, undo: AsyncExitStack) -> Vm:
    key = vm_key(name)
    attachment = await network.setup_tap(key, replace(nic(2), id=name, identity=name))
    await network.admit(key)
    vm = Vm(attachment, wire)
    undo.callback(vm.close)
    return vm


async def opened(source: Vm, target: Vm) -> tuple[set[str], set[str]]:
    """What one may open to the other, by IPv4 and by IPv6."""
    orders = [(kind, address, "") for address in (target.ip, target.ipv6) for kind in KINDS]
    answers = await asyncio.to_thread(source.peer.probes, orders)
    found = [{kind for kind, answer in zip(KINDS, part, strict=True) if answer} for part in (answers[:6], answers[6:])]
    return found[0], found[1]


async def found(made: World) -> dict[str, tuple[set[str], set[str]]]:
    names = ("web", "job", "far")
    answers = await asyncio.gather(*(opened(vm, made.db) for vm in (made.web, made.job, made.far)))
    return dict(zip(names, answers, strict=True))


def told(web: set[str], job: set[str], far: set[str]) -> dict[str, tuple[set[str], set[str]]]:
    """No VM reaches one of another node by IPv4."""
    return {"web": (web, web), "job": (job, job), "far": (set(), far)}


@pytest.mark.parametrize(
    ("ingress", "far", "web", "job"),
    [
        ((DATABASE,), "web", {"database"}, set()),
        ((Opening("job"), Opening(protocol=ICMP)), "job", {"icmp"}, EVERYTHING),
        ((Opening("web", UDP), Opening("web", TCP, 50, 60)), "job", {"udp", "dns", "dns over tcp"}, set()),
        (
            (Opening("web", TCP, 1, 5432), DATABASE, Opening("web", ICMP), Opening("nobody")),
            "web",
            {"dns over tcp", "database", "icmp"},
            set(),
        ),
    ],
    ids=["a port", "anybody and one", "protocols and ranges", "overlapping"],
)
async def test_a_vm_takes_what_its_rules_say_from_its_node_and_from_others(
    a_world: World, ingress: tuple[Opening, ...], far: str, web: set[str], job: set[str]
) -> None:
    await a_world.screen(*ingress)
    await a_world.recognize(far)
    assert await found(a_world) == told(web, job, {"web": web, "job": job}[far])


async def test_answers_checks_and_the_edge_come_in_whatever_the_rules_say(a_world: World) -> None:
    await a_world.screen()
    await a_world.recognize("web")
    assert await found(a_world) == told(set(), set(), set())
    for target in (a_world.web, a_world.far):
        assert (await opened(a_world.db, target))[1] == EVERYTHING
    assert all(a_world.home.peer.probes([(kind, a_world.db.ip, "") for kind in KINDS])), "its own host"
    assert all(a_world.nodes.one.peer.probes([(kind, a_world.db.ip, "") for kind in KINDS])), "another node's"


async def test_who_is_not_known_gets_in_as_anybody_does(a_world: World) -> None:
    await a_world.screen(DATABASE, Opening(protocol=UDP))
    await a_world.recognize("")
    assert await found(a_world) == told({"udp", "dns", "database"}, {"udp", "dns"}, {"udp", "dns"})


async def test_a_vm_that_is_of_none_any_more_takes_anything_of_its_network_and_nothing_of_others(
    a_world: World,
) -> None:
    for ingress in ((Opening(),), None):
        await a_world.home.network.screen(DB, "db", ingress)
        assert await found(a_world) == told(EVERYTHING, EVERYTHING, EVERYTHING)
    assert await opened(a_world.home.other, a_world.db) == (set(), set())


async def test_what_rules_close_is_cut_where_it_is_open(a_world: World) -> None:
    await a_world.screen(Opening("web", UDP))
    await a_world.recognize("web")
    ends = (a_world.web, a_world.far)
    for ingress, lets in (((Opening("web", UDP),), True), ((DATABASE,), False), ((Opening("web", UDP),), True)):
        await a_world.screen(*ingress)
        assert [bool(vm.peer.probe("udp", a_world.db.ipv6, ":4444")) for vm in ends] == [lets, lets]


async def test_the_truth_table_holds_while_vms_of_groups_come_and_go(a_world: World) -> None:
    network = a_world.home.network
    await a_world.screen(DATABASE)
    await a_world.recognize("web")

    async def churn() -> None:
        for number in range(10):
            key, ingress = vm_key(f"churn_{number}"), (DATABASE, Opening(f"app_{number}", UDP, 1, 100 + number))
            spec = replace(nic(2), id=f"churn_{number}", identity="web", ingress=ingress)
            attachment = await network.setup_tap(key, spec)
            await network.admit(key)
            await network.screen(key, f"app_{number}", ingress[: number % 3])
            await network.release(key)
            os.close(attachment.fd)

    seen, _ = await asyncio.gather(found(a_world), churn())
    assert seen == told({"database"}, set(), {"database"})
    for row, lets in (
        (truth.GROUPED_OPEN, "database" in seen["web"][0]),
        (truth.GROUPED_CLOSED, "tcp" in seen["web"][0]),
    ):
        assert truth.may("VM", row, 4) == truth.may("VM", row, 6) == lets


async def test_rules_that_others_take_away_are_put_back(a_world: World) -> None:
    await a_world.screen(DATABASE)
    for kind, name in (("set", "ingress_held"), ("set", "ingress_open"), ("map", "ingress_from6")):
        a_world.home.host.run("nft", "flush", kind, "inet", a_world.home.helper.names.table, name)
        assert name in await a_world.home.network.heal()
    await a_world.recognize("web")
    assert await found(a_world) == told({"database"}, set(), {"database"})


async def test_a_restart_keeps_the_rules_and_who_is_known(a_world: World) -> None:
    await a_world.screen(DATABASE)
    home, far = a_world.home, a_world.far.attachment.lease.ipv6
    assert far is not None
    again = BridgeNetwork(home.helper.host, home.helper.names, home.told.network, monotonic)
    await again.recognize([Source("web", far), Source("web", IPv6Address(int(far) + 1))])
    await again.connect([a_world.nodes.one.told])
    await again.configure_bridge()
    ends: tuple[tuple[str, Vm, Ingress], ...] = (("nic_project_2", a_world.db, (DATABASE,)), ("web", a_world.web, None))
    for name, vm, ingress in ends:
        spec = replace(nic(2), id=name, identity=name, ingress=ingress)
        await again.adopt(vm_key(name), spec, vm.attachment.lease.ipv4)
    await again.settle()
    assert await opened(a_world.web, a_world.db) == ({"database"}, {"database"})
    assert await opened(a_world.far, a_world.db) == (set(), {"database"})
