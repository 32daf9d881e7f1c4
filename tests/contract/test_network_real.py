"""The network's contract on a real bridge with real rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from plasmavmc.network.bridge import BridgeNetwork
from tests.contract.host_rig import RealHelper, real_helper
from tests.contract.network_contract import OFFERED, SUBNET, FakeClock, NetworkContract, NetworkRig


def allowed_in(helper: RealHelper) -> set[tuple[str, str, IPv4Address]]:
    """What the anti-spoofing set in the kernel holds."""
    listing = helper.namespace.run("nft", "-j", "list", "set", "bridge", helper.names.table, "sources")
    held = next(item["set"] for item in json.loads(listing)["nftables"] if "set" in item)
    entries = (entry["concat"] for entry in held.get("elem", ()))
    return {(tap, mac, IPv4Address(address)) for tap, mac, address in entries}


def addresses_in(helper: RealHelper, name: str) -> set[IPv4Address]:
    """What a set of addresses in the kernel holds."""
    listing = helper.namespace.run("nft", "-j", "list", "set", "inet", helper.names.table, name)
    held = next(item["set"] for item in json.loads(listing)["nftables"] if "set" in item)
    return set(map(IPv4Address, held.get("elem", ())))


def known_in(helper: RealHelper) -> set[IPv6Address]:
    """VMs of other nodes that the kernel knows by their identity."""
    listing = helper.namespace.run("nft", "-j", "list", "map", "inet", helper.names.table, "identities6")
    held = next(item["map"] for item in json.loads(listing)["nftables"] if "map" in item)
    return {IPv6Address(address) for address, _ in held.get("elem", ())}


def open_in(helper: RealHelper) -> set[str]:
    """What the maps of ports in the kernel hold."""
    return {
        f"{port} {address}:{target}" for name in ("doors", "shared") for port, address, target in leads(helper, name)
    }


def leads(helper: RealHelper, name: str) -> Iterator[tuple[int, str, int]]:
    listing = helper.namespace.run("nft", "-j", "list", "map", "inet", helper.names.table, name)
    held = next(item["map"] for item in json.loads(listing)["nftables"] if "map" in item)
    for key, value in held.get("elem", ()):
        address, target = value["concat"]
        yield key["concat"][1], address, target


def wipe(helper: RealHelper) -> None:
    helper.namespace.run("nft", "flush", "ruleset")


@pytest.mark.real
class TestBridgeNetwork(NetworkContract):
    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[NetworkRig]:
        # sets of that guard can be looked at without any tap
        async with real_helper(tmp_path, guards=("nft",), publish=OFFERED.ports) as helper:
            clock = FakeClock()
            backend = BridgeNetwork(helper.host, helper.names, SUBNET, clock, publish=OFFERED)
            await backend.configure_bridge()
            looks = (partial(look, helper) for look in (allowed_in, open_in, wipe))
            held = (partial(addresses_in, helper, name) for name in ("egress_held", "ingress_held"))
            yield NetworkRig(backend, helper.names, clock, *looks, *held, partial(known_in, helper))
