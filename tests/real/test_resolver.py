"""The resolver as guests have it: asked with dig, through the firewall, killed, adopted, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from plasmavmc.host.operations import (
    PLACED_LIMITS,
    QUESTION_BYTES,
    QUESTIONS_PER_SECOND,
    RESOLVER_CGROUP,
    RESOLVER_PORT,
    ProcessId,
)
from plasmavmc.host.processes import is_alive, read_process
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.network.dns.keeper import ResolverKeeper
from plasmavmc.network.dns.names import Names, NetworkNames
from tests.contract.host_rig import NOBODY, Namespace, RealHelper, eventually, sleeper
from tests.real.network_world import Vm, World

pytestmark = pytest.mark.real
GATEWAY = "10.64.0.1"
"""Of the first installation on a host."""
FLOOD = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect((sys.argv[1], 53))
    until = time.monotonic() + 2
    while time.monotonic() < until:
        one.send(b"x")
"""
"""Datagrams without end, of one stream."""
LARGE = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.settimeout(2)
    one.connect((sys.argv[1], 53))
    one.send(bytes.fromhex("000101000001000000000000") + bytes(int(sys.argv[2]) - 12))
    try:
        print(len(one.recv(4096)))
    except TimeoutError:
        print("nothing")
"""
"""What answers a question of so many bytes, which is none."""
MANY = tuple(f"10.64.9.{number}" for number in range(2, 202))


def names(**hosts: tuple[str, ...]) -> NetworkNames:
    return NetworkNames(hosts=hosts)


def dig(namespace: Namespace, server: str, name: str, *more: str) -> list[str]:
    """What dig prints: the records' data, or the word that tells why there are none."""
    told = namespace.run(
        "dig", f"@{server}", name, "+tries=1", "+time=3", "+noall", "+answer", "+comments", *more, check=False
    )
    found = [line.split()[-1] for line in told.splitlines() if line and not line.startswith(";")]
    if found:
        return found
    status = next((line for line in told.splitlines() if "status:" in line), "status: TIMEOUT,")
    return [status.partition("status: ")[2].partition(",")[0]]


def memory_limits(group: str) -> set[str]:
    """What is set for a cgroup, in whatever hierarchy."""
    files = ("memory.limit_in_bytes", "memory.max")
    return {path.read_text().strip() for file in files for path in Path("/sys/fs/cgroup").glob(f"**/{group}/{file}")}


def reached_resolver(namespace: Namespace) -> int:
    """Datagrams that came as far as a socket in this namespace, or as its full buffer."""
    lines = [line.split() for line in namespace.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")]
    found = dict(zip(lines[0][1:], map(int, lines[1][1:]), strict=True))
    return found["InDatagrams"] + found["InErrors"]


def came_in(namespace: Namespace) -> int:
    """Frames that came from all VMs."""
    links = json.loads(namespace.run("ip", "-statistics", "-json", "link"))
    return sum(link["stats64"]["rx"]["packets"] for link in links if "master" in link)


@dataclass
class Site:
    """Two VMs of one installation, of two networks, and its resolver."""

    world: World
    helper: RealHelper
    directory: Path
    keeper: ResolverKeeper
    shop: Vm
    other: Vm
    running: asyncio.Task[None]

    @property
    def gateway(self) -> str:
        return self.world.gateways[0]

    @property
    def process(self) -> ProcessId:
        assert self.keeper.process is not None
        return self.keeper.process

    async def ask(self, vm: Vm, name: str, *more: str) -> list[str]:
        return await asyncio.to_thread(dig, vm.namespace, self.gateway, name, *more)

    async def answers(self, vm: Vm, name: str, answer: str) -> None:
        """Return once that is what a VM is told."""
        deadline = monotonic() + 20
        while (told := await self.ask(vm, name)) != [answer]:
            assert monotonic() < deadline, told

    async def tell(self, told: Names, name: str, answer: str) -> None:
        """Tell names; return when one of them is known."""
        self.keeper.name(told)
        await self.answers(self.shop, name, answer)

    async def leave(self, *, keep: bool) -> None:
        """As the engine's end."""
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running
        await self.keeper.close(keep=keep)

    async def come_again(self) -> None:
        """As the engine's next start."""
        self.keeper = keeper(self.helper, self.directory)
        await self.keeper.open()
        self.running = asyncio.create_task(self.keeper.run())


def keeper(helper: RealHelper, directory: Path) -> ResolverKeeper:
    def answers() -> bool:
        """From where its sockets are."""
        return dig(helper.namespace, GATEWAY, "internal", "+time=1") != ["TIMEOUT"]

    return ResolverKeeper(helper.host, directory / "run", directory / "state", answers=answers, look_every_s=0.3)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as undo:
        world = World()
        undo.callback(world.close)
        world.lay_cable(RESOLVER_PORT)
        helper = RealHelper(world.host, tmp_path / "helper")
        undo.push_async_callback(helper.clean)
        network = await world.add_installation(helper)
        subnet = network._members.bridge.network
        kept = keeper(helper, tmp_path)
        await kept.open()
        assert kept.serves
        world.networks[0] = network = BridgeNetwork(
            helper.host, helper.names, subnet, monotonic, kept, connections=4096
        )
        await network.configure_bridge()
        await network.settle()
        running = asyncio.create_task(kept.run())
        shop = await world.add_vm("shop", network, "net_shop")
        other = await world.add_vm("other", network, "net_other")
        made = Site(world, helper, tmp_path, kept, shop, other, running)
        yield made
        await made.leave(keep=False)


async def test_guests_ask_by_name_and_the_resolver_outlives_who_started_it(site: Site) -> None:
    shop, other, gateway = site.shop, site.other, site.gateway
    hosts = names(web=("10.64.0.2",), many=MANY)
    told = Names(networks={"net_shop": hosts, "net_other": names(web=("10.64.0.3",))})
    await site.tell(told, "web.internal", "10.64.0.2")

    # The same name is another for another asker; what is foreign looks absent; by TCP as by UDP.
    assert await site.ask(shop, "web.internal") == ["10.64.0.2"]
    assert await site.ask(other, "WEB.internal") == ["10.64.0.3"]
    assert await site.ask(shop, "web.internal", "+tcp") == ["10.64.0.2"]
    assert await site.ask(other, "many.internal") == ["NXDOMAIN"]
    assert len(await site.ask(shop, "many.internal")) == len(MANY)  # cut, and asked again by TCP
    assert await site.ask(shop, "web.internal", "ANY", "+notcp") == ["REFUSED"]
    assert await site.ask(shop, "web.internal", "+edns=1", "+noednsneg") == ["BADVERS"]

    # Guests reach this one port of their host and no other; strangers are refused, and other hosts not even that.
    assert shop.peer.probe("tcp", gateway) != "open"
    assert await asyncio.to_thread(dig, site.world.host, gateway, "web.internal") == ["REFUSED"]
    assert await asyncio.to_thread(dig, site.world.outside, gateway, "web.internal", "+time=1") == ["TIMEOUT"]

    # Killed, it is there again; what it was told is on disk, and nobody need tell it again.
    killed = site.process
    os.kill(killed.pid, signal.SIGKILL)
    await eventually(lambda: site.process != killed and is_alive(site.process), "another resolver runs")
    await site.answers(shop, "web.internal", "10.64.0.2")
    assert site.directory.joinpath("state", "names.json").stat().st_mode & 0o777 == 0o600

    # So it is where it lives and answers nobody.
    stopped = site.process
    os.kill(stopped.pid, signal.SIGSTOP)
    await eventually(lambda: site.process != stopped and not is_alive(stopped), "it was replaced")
    await site.answers(shop, "web.internal", "10.64.0.2")

    # Its keeper goes, even the helper: it answers on, and the next keeper adopts it.
    kept = site.process
    await site.leave(keep=True)
    site.helper.kill()
    assert await site.ask(shop, "web.internal") == ["10.64.0.2"]
    site.helper.start()
    await site.come_again()
    assert site.process == kept
    await site.tell(Names(networks={"net_shop": names(api=("10.64.0.2",))}), "api.internal", "10.64.0.2")
    await site.answers(shop, "web.internal", "NXDOMAIN")

    # It ends where it is to end.
    await site.leave(keep=False)
    assert not is_alive(kept)


async def test_one_vm_that_never_stops_asking_is_heard_so_often_and_no_more_and_others_are_heard(site: Site) -> None:
    told = Names(networks={"net_shop": names(web=("10.64.0.2",)), "net_other": names(web=("10.64.0.3",))})
    await site.tell(told, "web.internal", "10.64.0.2")
    process, host = site.process, site.world.host
    came, reached, begun = came_in(host), reached_resolver(host), monotonic()
    await asyncio.to_thread(site.shop.namespace.run, sys.executable, "-c", FLOOD, site.gateway)
    came, reached, took = came_in(host) - came, reached_resolver(host) - reached, monotonic() - begun
    most = QUESTIONS_PER_SECOND * (took + 1)
    assert came > 2 * most, "it was a flood"
    assert reached < most
    await site.answers(site.other, "web.internal", "10.64.0.3")
    await site.answers(site.shop, "web.internal", "10.64.0.2")
    assert site.process == process


async def test_a_datagram_that_is_larger_than_a_question_can_be_is_not_looked_at(site: Site) -> None:
    told = [
        site.shop.namespace.run(sys.executable, "-c", LARGE, site.gateway, str(size)).strip()
        for size in (QUESTION_BYTES, QUESTION_BYTES + 1)
    ]
    assert told == ["12", "nothing"]


async def test_what_is_placed_as_the_resolver_has_bounded_memory(site: Site) -> None:
    with sleeper(uid=NOBODY) as pid:
        process = read_process(pid)
        assert process is not None
        confinement = await site.helper.host.cgroup_place(RESOLVER_CGROUP, process.id)
        limited = {str(PLACED_LIMITS[RESOLVER_CGROUP].memory_bytes)}
        found = memory_limits(f"{site.helper.names.cgroup}/{RESOLVER_CGROUP}")
        assert found - {"max"} == (set() if confinement == "rlimits" else limited)
