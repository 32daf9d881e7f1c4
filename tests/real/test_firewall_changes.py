"""Rules that are changed by their elements, held against the kernel: they are what a whole load makes of them."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from itertools import count
from pathlib import Path
from select import select

import pytest

from plasmavmc.host.addresses import prefix_from, private_address
from plasmavmc.host.operations import Member, RuleSet, Source
from plasmavmc.policy import Destination, Egress, IpProtocol, Opening
from plasmavmc.types import vm_key
from tests.contract.host_parts import SUBNET, HostRig
from tests.contract.host_rig import RealHelper, real_helper, rig_of

pytestmark = pytest.mark.real
ELSEWHERE = IPv4Network("10.64.240.0/20")
GUARDS = ("nft",)
"""So that both tables are in use."""


def listed(helper: RealHelper) -> dict[str, object]:
    """What the sets of both tables hold."""
    found: dict[str, object] = {}
    for family in ("inet", "bridge"):
        told = json.loads(helper.namespace.run("nft", "--json", "list", "table", family, helper.names.table))
        for item in told["nftables"]:
            for each in (item.get("set"), item.get("map")):
                if each is not None:
                    found[f"{family} {each['name']}"] = sorted(map(json.dumps, each.get("elem", ())))
    return found


LISTS: tuple[Egress, ...] = (
    None,
    (),
    (Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443),),
    (Destination(IPv4Network("0.0.0.0/0"), IpProtocol.UDP, 53, 5353), Destination(IPv4Network("192.0.2.1/32"))),
)


def members(rig: HostRig, dice: random.Random) -> tuple[Member, ...]:
    """Of few networks and lists, some of which nobody has, and none of which has the same number each time."""
    chosen = dice.sample(range(40), dice.randrange(30))
    return tuple(member(rig, number, dice.randrange(5), dice.choice(LISTS)) for number in chosen)


def member(rig: HostRig, number: int, network: int, egress: Egress = None) -> Member:
    plain = rig.member(vm_key(f"vm_{number}"), number + 2, f"net_{network}")
    private = private_address(prefix_from("changes"), SUBNET, network + 1, plain.ipv4) if network else None
    return replace(plain, ipv6=private, egress=egress)


def drawn_plain(rig: HostRig, dice: random.Random) -> RuleSet:
    return RuleSet(rig.bridge, members(rig, dice))


def grouped(rig: HostRig, dice: random.Random) -> RuleSet:
    """As `members`, of which some are in security groups or named by them, and VMs of other nodes."""
    kinds = (Opening(), Opening("app_1", IpProtocol.ICMP), Opening("app_2", IpProtocol.TCP, 80, 443), Opening("app_1"))
    chosen = tuple(
        replace(
            each,
            identity=f"app_{dice.randrange(4)}",
            ingress=dice.choice([None, tuple(dice.sample(kinds, dice.randrange(4)))]),
        )
        for each in members(rig, dice)
    )
    away = [private_address(prefix_from("changes"), ELSEWHERE, 1, ELSEWHERE[number]) for number in range(2, 30)]
    sources = tuple(Source(f"app_{dice.randrange(4)}", each) for each in dice.sample(away, dice.randrange(20)))
    return RuleSet(rig.bridge, chosen, sources=sources)


def handles(helper: RealHelper) -> list[object]:
    """Of the tables: a table that is loaded again has another one."""
    told = json.loads(helper.namespace.run("nft", "--json", "list", "tables"))["nftables"]
    return [item["table"]["handle"] for item in told if item.get("table", {}).get("name") == helper.names.table]


@asynccontextmanager
async def firewall(tmp_path: Path) -> AsyncIterator[tuple[RealHelper, HostRig]]:
    async with real_helper(tmp_path, guards=GUARDS) as helper:
        rig = rig_of(helper)
        await rig.host.bridge_ensure(rig.bridge)
        await rig.host.rules_apply(RuleSet(rig.bridge))
        yield helper, rig


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "groups"])
async def test_changes_leave_what_a_whole_load_would(tmp_path: Path, *, plain: bool) -> None:
    dice = random.Random(7)
    drawn = drawn_plain if plain else grouped
    async with firewall(tmp_path) as (helper, rig):
        for _ in range(8):
            rules, loaded = drawn(rig, dice), handles(helper)
            await rig.host.rules_apply(rules)
            changed = listed(helper)
            assert handles(helper) == loaded, "it was a change of elements"
            assert await rig.host.rules_fault() == ""
            helper.namespace.run("nft", "delete", "table", "bridge", helper.names.table)
            assert helper.names.table in await rig.host.rules_fault()
            await rig.host.rules_apply(rules)
            assert changed == listed(helper)
            await rig.host.rules_apply(drawn(rig, dice))


@contextmanager
def watched(helper: RealHelper) -> Iterator[Callable[[], list[str]]]:
    """While it is open, tells which programs have changed the rules in the namespace since it was asked last, or began. It
    asks by a change of its own, after which a helper loads everything."""
    command = [*helper.namespace.enter, "stdbuf", "-oL", "nft", "monitor"]
    monitor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert monitor.stdout is not None
    lines, marks = monitor.stdout, count()

    def mark() -> str:
        name = f"mark{next(marks)}"
        helper.namespace.run("nft", "add", "table", "ip", name)
        return name

    def programs() -> list[str]:
        until, found = mark(), list[str]()
        for line in lines:
            if line.split() == ["add", "table", "ip", until]:
                next(lines)  # who made it
                return found
            found += re.findall(r"by process \d+ \((.*)\)", line)
        raise AssertionError("the monitor has ended")

    try:
        while not select([lines], [], [], 0.1)[0]:
            mark()
        yield programs
    finally:
        monitor.kill()
        monitor.wait()
        lines.close()


async def test_vms_of_security_groups_come_and_go_without_another_program(tmp_path: Path) -> None:
    """`nft` takes as long as there are VMs; a message to the kernel as the change is large."""
    async with firewall(tmp_path) as (helper, rig):
        web = [replace(member(rig, number, 1), identity="web") for number in range(4)]
        database = replace(member(rig, 9, 1), identity="db", ingress=(Opening("web", IpProtocol.TCP, 5432, 5432),))
        shut, away = (
            replace(member(rig, 10, 1), ingress=()),
            private_address(prefix_from("changes"), ELSEWHERE, 1, ELSEWHERE[2]),
        )
        with watched(helper) as programs:
            programs()
            await rig.host.rules_apply(RuleSet(rig.bridge, tuple(web[:2])))
            for members_, sources in (
                ([*web[:2], database], ()),
                ([*web[:2], database], (Source("web", away),)),
                ([*web, database, shut], (Source("web", away),)),
                ([*web[1:], database, shut], ()),
                ([*web[1:], replace(database, ingress=(Opening("job"),))], ()),
                (web, ()),
            ):
                rules = RuleSet(rig.bridge, tuple(members_), sources=sources)
                await rig.host.rules_apply(rules)
                assert await rig.host.rules_fault() == ""
            load, *changes = programs()
            assert load == "nft", "which is told, so that its absence means something"
            assert len(changes) == 6
            assert "nft" not in changes


async def test_a_change_of_rules_that_others_touched_loads_all_of_them(tmp_path: Path) -> None:
    async with firewall(tmp_path) as (helper, rig):
        one, two, table = member(rig, 1, 1, LISTS[2]), member(rig, 2, 2), helper.names.table
        await rig.host.rules_apply(RuleSet(rig.bridge, (one, two)))
        wanted = listed(helper)
        for touch in (
            ("flush", "set", "inet", table, "reachable"),
            ("add", "table", "ip", "others"),
            ("flush", "ruleset"),
        ):
            await rig.host.rules_apply(RuleSet(rig.bridge, (one,)))
            helper.namespace.run("nft", *touch)
            await rig.host.rules_apply(RuleSet(rig.bridge, (one, two)))
            assert listed(helper) == wanted, touch
            assert await rig.host.rules_fault() == ""
