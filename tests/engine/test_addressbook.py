"""Addresses over restarts of the engine: none is taken for one that nobody had, whatever became of the file."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from plasmavmc.errors import CapacityError
from plasmavmc.host.names import HostNames
from plasmavmc.network import addressbook
from plasmavmc.network.addressbook import AddressBook
from plasmavmc.network.backend import Attachment
from plasmavmc.network.ipam import AddressPool
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.types import NetworkSpec
from tests.engine.syncs import Syncs

SUBNET = IPv4Network("10.64.0.0/24")
SMALL = IPv4Network("10.64.0.0/28")
ROOM = 253
STEP = 4
"""So many of this subnet's are entered at once."""


def pool_of(path: Path, subnet: IPv4Network = SUBNET) -> AddressPool:
    return AddressPool(subnet, AddressBook(subnet, path))


def place(number: int, subnet: IPv4Network = SUBNET) -> IPv4Address:
    return subnet.network_address + number


def rest(pool: AddressPool) -> list[IPv4Address]:
    """All that it gives out from now on, until none is left."""
    given: list[IPv4Address] = []
    while True:
        try:
            given.append(pool.take(f"rest{len(given)}"))
        except CapacityError:
            return given


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Nothing is waited for until it is on the disk."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "addresses"


def test_what_came_back_before_a_restart_is_given_out_last_after_it(path: Path) -> None:
    pool = pool_of(path)
    addresses = [pool.take(f"vm{number}") for number in range(3)]
    for number in (1, 0, 2):
        pool.release(f"vm{number}", float(number))
    given = rest(pool_of(path))
    assert len(given) == ROOM
    came_back = [given.index(addresses[number]) for number in (1, 0, 2)]
    assert came_back == sorted(came_back)
    assert min(came_back) >= ROOM - STEP


def test_what_a_vm_had_that_did_not_outlive_the_engine_is_given_out_last(path: Path) -> None:
    pool = pool_of(path)
    lost = pool.take("lost")
    back = pool.take("back")
    pool.release("back", 1.0)
    given = rest(pool_of(path))
    assert given.index(back) < given.index(lost)
    assert given.index(back) >= ROOM - STEP


def test_what_an_adopted_vm_has_is_not_given_out(path: Path) -> None:
    address = pool_of(path).take("vm")
    again = pool_of(path)
    again.claim("vm", address)
    given = rest(again)
    assert len(given) == ROOM - 1
    assert address not in given


def test_vms_are_adopted_without_waiting_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pool_of(path)
    addresses = {f"vm{number}": first.take(f"vm{number}") for number in range(20)}
    again = pool_of(path)
    syncs = Syncs(monkeypatch)
    for key, address in addresses.items():
        again.claim(key, address)
    assert len([name for name in syncs.names if name.startswith("addresses")]) == 1, "it is written anew"


def test_an_address_that_was_claimed_again_counts_as_given_out(path: Path) -> None:
    first = pool_of(path)
    addresses = [first.take(f"vm{number}") for number in range(2)]
    first.release("vm0", 0.0)
    first.release("vm1", 1.0)
    first.claim("vm0", addresses[0])
    given = rest(pool_of(path))
    assert given.index(addresses[1]) < given.index(addresses[0])


def test_an_address_is_on_the_disk_before_anybody_has_it_and_that_is_seldom_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(path)
    syncs = Syncs(monkeypatch)
    for number in range(4 * STEP):
        address = pool.take(f"vm{number}")
        assert f"+{int(address) - int(SUBNET.network_address)}\n" in path.read_text()
        if number % 2:
            pool.release(f"vm{number}", float(number))
    assert len([name for name in syncs.names if name.startswith("addresses")]) == 4


def test_the_file_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addressbook, "_LARGEST", 4096)
    pool = pool_of(path)
    for number in range(5000):
        pool.take("vm")
        pool.release("vm", float(number))
    assert path.stat().st_size <= 4096
    last = pool.take("vm")
    assert rest(pool_of(path)).index(last) >= ROOM - 2 * STEP


def test_the_book_of_a_large_subnet_is_not_written_anew_with_each_entry(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addressbook, "_LARGEST", 64)
    pool = pool_of(path)
    for number in range(200):
        pool.take(f"vm{number}")
    syncs = Syncs(monkeypatch)
    for number in range(200):
        pool.release(f"vm{number}", float(number))
    assert len(syncs.names) < 10


def test_who_comes_back_to_its_address_does_not_wait_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(path)
    addresses = {f"vm{number}": pool.take(f"vm{number}") for number in range(2 * STEP)}
    pool.release("vm1", 1.0)
    pool.release("vm7", 2.0)
    syncs = Syncs(monkeypatch)
    pool.claim("vm1", addresses["vm1"])
    pool.claim("vm7", addresses["vm7"])
    assert syncs.names == []
    pool.claim("stranger", place(100))
    assert syncs.names == ["addresses"], "nobody had this one before"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 500,
        b"addresses 1 10.99.0.0/24\n+2\n+3\n",
        b"addresses 9 10.64.0.0/24\n+2\n+3\n",
        b"addresses 1 10.64.0.0/24",
        "addresses 1 10.64.0.0/24é\n+2\n".encode(),
    ],
)
def test_a_file_that_is_none_of_ours_says_nothing_and_is_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    pool = pool_of(path)
    assert pool.take("vm") == place(2)
    assert place(2) not in rest(pool_of(path))[: ROOM - STEP]


@pytest.mark.parametrize("torn", ["+1", "-", "+", "\n", "x7\n", "+99999999999999999999\n", "+4000\n", "+²\n", "+-3\n"])
def test_a_line_that_is_none_is_passed_over(path: Path, torn: str) -> None:
    path.write_text(f"addresses 1 {SUBNET}\n+2\n+3\n{torn}")
    pool = pool_of(path)
    assert pool.take("vm") == place(4)
    pool.release("vm", 0.0)
    given = rest(pool_of(path))
    assert {place(2), place(3), place(4)}.isdisjoint(given[: ROOM - STEP - 2])


@given(cut=st.integers(min_value=0, max_value=400))
@settings(max_examples=40)
def test_a_file_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "addresses"
    pool = pool_of(path)
    for number in range(40):
        pool.take(f"vm{number}")
    path.write_bytes(path.read_bytes()[:cut])
    assert len(set(rest(pool_of(path)))) == ROOM


def test_a_disk_that_takes_no_entry_keeps_nobody_from_an_address(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of(path)
    with monkeypatch.context() as patches:

        def full(*_: object, **__: object) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patches.setattr(AddressBook, "_append", full)
        patches.setattr(AddressBook, "_rewrite", full)
        had = {pool.take(f"vm{number}") for number in range(3)}
        pool.release("vm0", 1.0)
    assert capsys.readouterr().out.count("addresses.not_written") == 1
    pool.release("vm1", 2.0)
    assert had.isdisjoint(rest(pool_of(path))[: ROOM - STEP])


def test_a_file_that_cannot_be_read_says_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.mkdir()
    assert pool_of(path).take("vm") == place(2)
    assert "addresses.not_read" in capsys.readouterr().out


async def test_a_node_s_network_remembers_its_addresses_over_a_restart(path: Path) -> None:
    names = HostNames.of("ins_a")

    def network() -> MemoryNetwork:
        return MemoryNetwork(names, SUBNET, lambda: 0.0, book=AddressBook(SUBNET, path))

    async def address(of: MemoryNetwork, key: str) -> IPv4Address:
        attachment = await of.setup_tap(key, NetworkSpec(f"nic_{key}", "net_a"), opened=False)
        return attachment.lease.ipv4

    first = network()
    before = await address(first, "aaaaaaaaaaaa")
    await first.release("aaaaaaaaaaaa")
    assert await address(network(), "bbbbbbbbbbbb") != before


async def test_no_vm_s_start_keeps_the_event_loop_waiting_for_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MemoryNetwork(HostNames.of("ins_a"), SUBNET, lambda: 0.0, book=AddressBook(SUBNET, path))

    async def attach(key: str) -> Attachment:
        spec = NetworkSpec(f"nic_{key}", "net_a")
        await network.make_room(spec)
        return await network.setup_tap(key, spec, opened=False)

    await attach("aaaaaaaaaaaa")
    syncs = Syncs(monkeypatch)
    keys = [f"{chr(ord('b') + number)}aaaaaaaaaaa" for number in range(4 * STEP)]
    attached = await asyncio.gather(*map(attach, keys))
    assert len({each.lease.ipv4 for each in attached}) == len(keys)
    assert syncs.in_event_loop == []
    assert len(syncs.names) == 4
    nobody_had = rest(pool_of(path))[: ROOM - 5 * STEP]
    assert not {each.lease.ipv4 for each in attached} & set(nobody_had)


async def test_an_address_that_is_claimed_while_it_is_entered_is_given_to_nobody_else(path: Path) -> None:
    pool = pool_of(path)
    looking = asyncio.create_task(pool.look_ahead())
    await asyncio.sleep(0)
    pool.claim("other", place(2))
    await looking
    assert pool.take("vm") == place(3)


class Restarts(RuleBasedStateMachine):
    """Takes, releases and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "addresses"
        self.pool = pool_of(self.path, SMALL)
        self.held: dict[str, IPv4Address] = {}
        self.back: dict[IPv4Address, int] = {}
        """When each that somebody had came back."""
        self.now = 0

    @rule()
    def take(self) -> None:
        self.now += 1
        try:
            address = self.pool.take(f"vm{self.now}")
        except CapacityError:
            assert len(self.held) == 13
            return
        assert address not in self.held.values()
        if address in self.back:
            free = self.back.keys() - set(self.held.values())
            assert self.back[address] == min(self.back[each] for each in free)
        self.held[f"vm{self.now}"] = address

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            self.now += 1
            name = data.draw(st.sampled_from(sorted(self.held)))
            self.back[self.held.pop(name)] = self.now
            self.pool.release(name, float(self.now))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        self.now += 1
        lives = data.draw(st.sets(st.sampled_from(sorted(self.held)))) if self.held else set()
        self.back.update({address: self.now for name, address in self.held.items() if name not in lives})
        self.held = {name: address for name, address in self.held.items() if name in lives}
        self.pool = pool_of(self.path, SMALL)
        for name, address in self.held.items():
            self.pool.claim(name, address)

    def teardown(self) -> None:
        self.directory.cleanup()


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=40, stateful_step_count=40)
