"""The choice of an installation's subnet: each has its own, also where several choose at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, HostError
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.memory import MemoryHost
from plasmavmc.host.operations import Bridge
from plasmavmc.server.assembly import SUBNET_FILE, open_subnet
from tests.contract.host_rig import RealHelper, real_helper

FIRST, SECOND = IPv4Network("10.64.0.0/20"), IPv4Network("10.64.16.0/20")
CONFIGURATION = HelperConfiguration("swg_0123456789abcdef", 65534, 65534)
NAMES = CONFIGURATION.names


class Contended(MemoryHost):
    """Others take networks between the look and the taking."""

    def __init__(self, *others: IPv4Network) -> None:
        super().__init__(CONFIGURATION)
        self._others = list(others)
        self.made: list[IPv4Network] = []

    async def bridge_ensure(self, bridge: Bridge) -> str:
        if self._others:
            self._networks = (*self._networks, self._others.pop(0))
        lack = await super().bridge_ensure(bridge)
        self.made.append(bridge.network)
        return lack


async def test_the_first_that_is_free_is_taken_and_kept(tmp_path: Path) -> None:
    host = Contended()
    assert await open_subnet(host, NAMES, tmp_path) == FIRST
    assert host.made == [FIRST]
    assert (tmp_path / SUBNET_FILE).read_text() == f"{FIRST}\n"
    (tmp_path / SUBNET_FILE).write_text(f"{SECOND}\n")
    assert await open_subnet(Contended(), NAMES, tmp_path) == SECOND


async def test_one_that_somebody_takes_meanwhile_is_left_to_him(tmp_path: Path) -> None:
    host = Contended(FIRST)
    assert await open_subnet(host, NAMES, tmp_path) == SECOND
    assert host.made == [SECOND]
    assert (tmp_path / SUBNET_FILE).read_text() == f"{SECOND}\n"


async def test_one_that_is_given_is_taken_or_nothing_is(tmp_path: Path) -> None:
    assert await open_subnet(Contended(), NAMES, tmp_path, SECOND) == SECOND
    with pytest.raises(CapacityError) as refused:
        await open_subnet(Contended(SECOND), NAMES, tmp_path, SECOND)
    assert refused.value.code == "subnet-taken"


async def test_another_refusal_is_told(tmp_path: Path) -> None:
    class Broken(MemoryHost):
        async def bridge_ensure(self, bridge: Bridge) -> str:
            raise HostError("host-network", "no")

    with pytest.raises(HostError, match="no"):
        await open_subnet(Broken(CONFIGURATION), NAMES, tmp_path)
    assert not (tmp_path / SUBNET_FILE).exists()


@asynccontextmanager
async def beside(first: RealHelper) -> AsyncIterator[RealHelper]:
    """Another installation on the same host."""
    helper = RealHelper(first.namespace, first.configuration.run_root)
    try:
        yield helper
    finally:
        await helper.clean()


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[list[RealHelper]]:
    """Installations on one host, each with its own root helper."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(real_helper(tmp_path))
        yield [first, *[await stack.enter_async_context(beside(first)) for _ in range(2)]]


@pytest.mark.real
async def test_those_that_start_at_once_on_one_host_have_a_network_each(
    neighbours: list[RealHelper], tmp_path: Path
) -> None:
    async def start(number: int, helper: RealHelper) -> IPv4Network:
        data_dir = tmp_path / f"data-{number}"
        data_dir.mkdir()
        return await open_subnet(helper.host, helper.names, data_dir)

    found = await asyncio.gather(*(start(number, helper) for number, helper in enumerate(neighbours)))
    assert len(set(found)) == len(neighbours)
