"""What a host remembers of its VMs' connections opens nothing to others: neither its own services to a VM, nor a VM's
connections to the next one that has its address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from time import monotonic
from typing import NamedTuple

import pytest
import pytest_asyncio

from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import vm_key
from tests.contract.host_rig import Namespace, RealHelper
from tests.real.network_world import HOST_OUTSIDE, OUTSIDE, World, nic

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
FAR_PORT = 40_000
SERVICES = (22, 443, 7083, 7084, 25_000)
"""Ports of a host at which it is spoken to: SSH, an edge, tunnels, a published one."""


class Heard(NamedTuple):
    at: int
    """The port at which it came."""
    said: str
    sender: str
    sender_port: int


_TALK = """
import json, select, socket, sys
ports = {}
for number in map(int, sys.argv[1:]):
    ports[number] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ports[number].bind(("", number))
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order[0] == "say":
        _, own, said, address, port = order
        ports[own].sendto(said.encode(), (address, port))
        print("null", flush=True)
        continue
    heard = []
    while order[1] not in [said for _, said, _, _ in heard]:
        for each in select.select(list(ports.values()), [], [], 5)[0] or sys.exit("nothing more is heard"):
            data, (address, port) = each.recvfrom(2000)
            heard.append([each.getsockname()[1], data.decode(), address, port])
    print(json.dumps(heard), flush=True)
"""


class Talker:
    """A program that has these UDP ports in a namespace."""

    def __init__(self, namespace: Namespace, *ports: int) -> None:
        command = [*namespace.enter, sys.executable, "-c", _TALK, *map(str, ports)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, own: int, said: str, address: str, port: int) -> None:
        self._ask("say", own, said, address, port)

    def heard_until(self, last: str) -> list[Heard]:
        """What came, up to that. It waits for it."""
        answer = self._ask("hear", last)
        assert isinstance(answer, list)
        return [Heard(*each) for each in answer]

    def _ask(self, *order: object) -> object:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def talkers(*places: tuple[Namespace, tuple[int, ...]]) -> Iterator[list[Talker]]:
    with ExitStack() as undo:
        made = []
        for namespace, ports in places:
            made.append(Talker(namespace, *ports))
            undo.callback(made[-1].close)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    made = World()
    made.lay_cable()
    helper = RealHelper(made.host, tmp_path_factory.mktemp("remembered") / "run")
    try:
        await made.add_installation(helper)
        yield made
    finally:
        await helper.clean()
        made.close()


async def test_no_vm_hears_what_somebody_elsewhere_says_to_a_service_of_its_host(a_world: World) -> None:
    """It spoke to him before, from the port of that service: what he says there is no answer to that."""
    vm = await a_world.add_vm("a1", a_world.networks[0], "project_a")
    with talkers((vm.namespace, SERVICES), (a_world.outside, (FAR_PORT,))) as (guest, other):
        for number in SERVICES:
            guest.say(number, "hello", OUTSIDE, FAR_PORT)
            [seen] = other.heard_until("hello")
            assert seen.sender == HOST_OUTSIDE
            other.say(FAR_PORT, "to the service", HOST_OUTSIDE, number)
            other.say(FAR_PORT, f"an answer to {number}", HOST_OUTSIDE, seen.sender_port)
            heard = guest.heard_until(f"an answer to {number}")
            assert [(each.at, each.said) for each in heard] == [(number, f"an answer to {number}")]


async def test_connections_of_a_vm_that_is_gone_open_nothing_to_or_from_the_next_one_at_its_address(
    a_world: World,
) -> None:
    """One that it opened to the outside, and one that its host opened to it."""
    network = a_world.networks[0]
    vm = await a_world.add_vm("old", network, "project_c")
    gateway = a_world.gateways[0]
    places = ((vm.namespace, (4444, 4445)), (a_world.outside, (FAR_PORT,)), (a_world.host, (5555,)))
    with talkers(*places) as (guest, other, host):
        guest.say(4444, "from the first", OUTSIDE, FAR_PORT)
        [seen] = other.heard_until("from the first")
        host.say(5555, "to the first", vm.ip, 4444)
        assert [each.sender for each in guest.heard_until("to the first")] == [gateway]
        other.say(FAR_PORT, "to the first again", HOST_OUTSIDE, seen.sender_port)
        guest.say(4444, "an answer of the first", gateway, 5555)
        host.heard_until("an answer of the first")
        guest.heard_until("to the first again")

        await network.release(vm_key("vm_old"))
        heir = replace(nic("old", "project_d"), ipv4=IPv4Address(vm.ip))
        await network.adopt(vm_key("vm_old"), heir, IPv4Address(vm.ip))
        await network.settle()

        other.say(FAR_PORT, "to the first, later", HOST_OUTSIDE, seen.sender_port)
        guest.say(4444, "an answer of the next one", gateway, 5555)
        guest.say(4445, "from the next one", OUTSIDE, FAR_PORT)
        [seen] = other.heard_until("from the next one")
        other.say(FAR_PORT, "to the next one", HOST_OUTSIDE, seen.sender_port)
        assert [each.said for each in guest.heard_until("to the next one")] == ["to the next one"]
        host.say(5555, "a question to the next one", vm.ip, 4445)
        guest.heard_until("a question to the next one")
        guest.say(4445, "its answer", gateway, 5555)
        assert [each.said for each in host.heard_until("its answer")] == ["its answer"]


async def test_a_host_looks_for_no_vm_that_is_gone_though_somebody_answers_it(a_world: World) -> None:
    """What it remembers of its neighbours, on all links, is a thousand."""
    network = a_world.networks[0]
    stays = await a_world.add_vm("here", network, "project_c")
    gone = [await a_world.add_vm(f"gone{number}", network, "project_c") for number in range(3)]
    places = [(vm.namespace, (4444,)) for vm in (stays, *gone)]
    with talkers((a_world.outside, (FAR_PORT,)), *places) as (other, guest, *guests):
        ways = []
        for each in (guest, *guests):
            each.say(4444, "a question", OUTSIDE, FAR_PORT)
            [seen] = other.heard_until("a question")
            ways.append(seen.sender_port)
        await network.release(vm_key("vm_gone0"))  # a change of elements
        a_world.host.run("nft", "add", "table", "ip", "touched")
        await network.release(vm_key("vm_gone1"))  # all is loaded
        for way in (*ways[1:], ways[0]):
            other.say(FAR_PORT, "an answer", HOST_OUTSIDE, way)
        guest.heard_until("an answer")
        guests[2].heard_until("an answer")
        told = json.loads(a_world.host.run("ip", "-json", "neigh", "show", "dev", a_world.names[0].bridge))
        known = {each["dst"] for each in told}
        assert {stays.ip, gone[2].ip} <= known
        assert not {gone[0].ip, gone[1].ip} & known


async def test_connections_outlive_other_vms_that_go_and_the_vms_own_sleep_and_a_restart(a_world: World) -> None:
    network = a_world.networks[0]
    stays = await a_world.add_vm("stays", network, "project_c")
    goes = await a_world.add_vm("goes", network, "project_c")
    with talkers((stays.namespace, (4444,)), (goes.namespace, (4444,)), (a_world.outside, (FAR_PORT,))) as parties:
        one, two, other = parties
        one.say(4444, "from the one", OUTSIDE, FAR_PORT)
        [seen] = other.heard_until("from the one")
        two.say(4444, "from the other", OUTSIDE, FAR_PORT)
        other.heard_until("from the other")
        await network.release(vm_key("vm_goes"))
        other.say(FAR_PORT, "still there", HOST_OUTSIDE, seen.sender_port)
        assert one.heard_until("still there")
        await network.release(vm_key("vm_stays"))
        await network.adopt(vm_key("vm_stays"), nic("stays", "project_c"), IPv4Address(stays.ip))
        await network.settle()
        other.say(FAR_PORT, "awake again", HOST_OUTSIDE, seen.sender_port)
        assert one.heard_until("awake again")
        heir = replace(nic("goes", "project_d"), ipv4=IPv4Address(goes.ip))
        await network.adopt(vm_key("vm_goes"), heir, IPv4Address(goes.ip))
        await network.settle()
        assert remembered_of(a_world, goes.ip) == []
        a_world.helpers[0].restart()
        subnet = stays.attachment.lease.network
        again = BridgeNetwork(a_world.helpers[0].host, a_world.names[0], subnet, monotonic)
        await again.configure_bridge()
        await again.adopt(vm_key("vm_stays"), nic("stays", "project_c"), IPv4Address(stays.ip))
        await again.settle()
        other.say(FAR_PORT, "after a restart", HOST_OUTSIDE, seen.sender_port)
        assert one.heard_until("after a restart")


def remembered_of(world: World, address: str) -> list[str]:
    lines = world.host.run("cat", "/proc/net/nf_conntrack").splitlines()
    return [line for line in lines if f"src={address} " in line]
