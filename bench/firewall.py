"""The firewall: how long the rules of 1,000 VMs take to load, and those of one more, beside nft itself with the same text.

Ours is what the start of a VM waits for: the order to the root helper, its checks, the text, nft, neighbours of the bridge.
The floor is nft alone, from the start of the program to its end.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

from bench.measure import Result, percentile, ratio
from plasmavmc.host.addresses import prefix_from, private_address
from plasmavmc.host.helper import rules, rules_members
from plasmavmc.host.operations import Member, RuleSet
from plasmavmc.policy import IpProtocol, Opening
from plasmavmc.types import vm_key
from tests.contract.host_parts import SUBNET, HostRig
from tests.contract.host_rig import RealHelper, real_helper, rig_of

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
VMS, NETWORKS, APPS = 1_000, 50, 100
GUARDS = ("nft",)
"""Both tables, as where programs at taps cannot be: the most there is to load."""
LOAD_MS, ONE_MORE_MS = 200.0, 10.0


def member(rig: HostRig, number: int) -> Member:
    """One of many; networks have 20 members each."""
    plain = rig.member(vm_key(f"vm_{number}"), number + 2, f"net_{number % NETWORKS}")
    private = private_address(prefix_from("bench"), IPv4Network(SUBNET), number % NETWORKS + 1, plain.ipv4)
    return Member(plain.tap, plain.mac, plain.ipv4, plain.network_id, private)


def nft_ms(helper: RealHelper, text: str) -> float:
    """nft alone, in the helper's namespace."""
    began = time.perf_counter()
    subprocess.run([*helper.namespace.enter, "nft", "-f", "-"], input=text.encode(), check=True)
    return (time.perf_counter() - began) * 1e3


def grouped(members: tuple[Member, ...]) -> tuple[Member, ...]:
    """The same in security groups: each is let into by the app before its own, at a port."""
    return tuple(
        replace(
            each,
            identity=f"app_{number % APPS}",
            ingress=(Opening(f"app_{(number - 1) % APPS}", IpProtocol.TCP, 5432, 5432),),
        )
        for number, each in enumerate(members)
    )


async def _ours_ms(rig: HostRig, members: tuple[Member, ...]) -> float:
    began = time.perf_counter()
    await rig.host.rules_apply(RuleSet(rig.bridge, members))
    return (time.perf_counter() - began) * 1e3


async def _measure(root: Path) -> list[Result]:
    (root / "ours").mkdir(mode=0o755)
    (root / "floor").mkdir(mode=0o755)
    async with real_helper(root / "ours", guards=GUARDS) as helper, real_helper(root / "floor", guards=GUARDS) as other:
        rig = rig_of(helper)
        await rig.host.bridge_ensure(rig.bridge)
        many = tuple(member(rig, number) for number in range(VMS))
        marks = rules_members.Marks().following(many)
        whole = rules.render(helper.names, rules.tables(helper.names, RuleSet(rig.bridge, many), marks))
        loads: dict[str, list[float]] = {"ours": [], "nft": []}
        ones: dict[str, list[float]] = {"ours": [], "nft": []}
        extra = member(rig, VMS)
        added = f"add element inet {helper.names.table} networks {{ {extra.ipv4} : 1 }}\n"
        removed = f"delete element inet {helper.names.table} networks {{ {extra.ipv4} }}\n"
        for _ in range(ROUNDS):
            helper.namespace.run("nft", "flush", "ruleset")
            loads["ours"].append(await _ours_ms(rig, many))
            loads["nft"].append(nft_ms(other, whole))
            ones["ours"].append(await _ours_ms(rig, (*many, extra)))
            ones["nft"].append(nft_ms(other, added))
            await rig.host.rules_apply(RuleSet(rig.bridge, many))
            nft_ms(other, removed)
        crowd = grouped((*many, extra))
        groups: dict[str, list[float]] = {"ours": [], "nft": []}
        for _ in range(ROUNDS):
            await rig.host.rules_apply(RuleSet(rig.bridge, crowd[:-1]))
            groups["ours"].append(await _ours_ms(rig, crowd))
            groups["nft"].append(nft_ms(other, added))
            nft_ms(other, removed)
    return [
        _result("firewall load", f"the rules of {VMS} VMs, against nft with the same text", loads, LOAD_MS),
        _result("firewall +1", f"one VM beside {VMS}, against nft with one element", ones, ONE_MORE_MS),
        _result("firewall +1, groups", f"the same, all of them in security groups of {APPS} apps", groups, ONE_MORE_MS),
    ]


def _result(row: str, what: str, found: dict[str, list[float]], most_ms: float) -> Result:
    cost, middle = ratio(found["ours"], found["nft"]), percentile(found["ours"], 0.5)
    details = tuple(
        f"{side}: p50 {percentile(samples, 0.5):.1f} ms, p99 {percentile(samples, 0.99):.1f} ms"
        for side, samples in found.items()
    )
    return Result(row, what, f"{middle:.1f} ms, {cost.text('×')}", f"≤ {most_ms:g} ms", middle <= most_ms, details)


def run() -> list[Result]:
    """Both."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        return asyncio.run(_measure(root))
