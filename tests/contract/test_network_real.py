"""The network's contract on a real bridge with real rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from plasmavmc.network.bridge import BridgeNetwork
from tests.contract.host_rig import RealHelper, real_helper
from tests.contract.network_contract import SUBNET, FakeClock, NetworkContract, NetworkRig


def allowed_in(helper: RealHelper) -> set[tuple[str, str, IPv4Address]]:
    """What the anti-spoofing set in the kernel holds."""
    listing = helper.namespace.run("nft", "-j", "list", "set", "bridge", helper.names.table, "sources")
    held = next(item["set"] for item in json.loads(listing)["nftables"] if "set" in item)
    entries = (entry["concat"] for entry in held.get("elem", ()))
    return {(tap, mac, IPv4Address(address)) for tap, mac, address in entries}


@pytest.mark.real
class TestBridgeNetwork(NetworkContract):
    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[NetworkRig]:
        async with real_helper(tmp_path) as helper:
            clock = FakeClock()
            backend = BridgeNetwork(helper.host, helper.names, SUBNET, clock)
            await backend.configure_bridge()
            yield NetworkRig(backend, helper.names, clock, lambda: allowed_in(helper))
