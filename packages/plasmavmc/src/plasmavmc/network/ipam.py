"""Addresses of VMs and the choice of an installation's subnet. Pure: the time is an argument.

Theory. The lowest address that nobody had yet is taken, so that addresses in use stay together and are easy to read; then
the one that was given back longest ago. Others may still hold connections to an address or remember it in a route, and
who is cut off from the control plane for hours remembers it for hours: so none is given out again while there is another.
An `AddressBook` keeps that order over restarts of the engine; what it says is out, and nobody claims, is the last one.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from plasmavmc.errors import CapacityError
from plasmavmc.host.configuration import POOL
from plasmavmc.network.addressbook import AddressBook

SUBNET_FILE = "subnet"
"""Of an installation's data directory: the one that it has."""
ADDRESSES_FILE = "addresses"
"""Of an installation's data directory: which ones somebody had."""
SUBNET_PREFIX = 20
AHEAD = 32
"""At most so many addresses are entered as given out at once, before the first of them is: to bring one entry to the disk
costs a start milliseconds. After a restart those that nobody got come last, as if somebody had had them; so they are few."""
_FEW = 64
"""One of so many of the subnet's."""


def choose_subnet(taken: Collection[IPv4Network]) -> IPv4Network:
    """The first /20 of 10.64.0.0/10 that overlaps none of the networks taken.

    Raises:
        CapacityError: there is none.
    """
    for subnet in POOL.subnets(new_prefix=SUBNET_PREFIX):
        if not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise CapacityError(
        "no-subnet",
        f"no /{SUBNET_PREFIX} of {POOL} is free on this host",
        resolution="remove unused networks or routes",
    )


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The host's own address in the subnet: the first."""
    return subnet.network_address + 1


class AddressPool:
    """The addresses of one subnet by the key of who holds them."""

    def __init__(self, subnet: IPv4Network, book: AddressBook | None = None) -> None:
        self._first = int(subnet.network_address) + 2
        self._last = int(subnet.broadcast_address) - 1
        self._book = book or AddressBook(subnet)
        self._held: dict[str, IPv4Address] = {}
        known = self._book.order
        self._released: dict[IPv4Address, float] = {address: place - len(known) for place, address in enumerate(known)}
        """When each that somebody had came back; before 0 where that was in an earlier life."""
        self._step = max(1, min(AHEAD, subnet.num_addresses // _FEW))
        self._ahead: deque[IPv4Address] = deque()
        """The next ones, which are entered already."""
        self._looking = asyncio.Lock()

    def take(self, key: str) -> IPv4Address:
        """An address for `key`, which has none.

        Raises:
            CapacityError: all are held.
        """
        if not self._ahead:
            self._look_ahead()
        return self._hold(key, self._ahead[0])

    async def look_ahead(self) -> None:
        """Have the next ones entered where none is, so that `take` does not wait for the disk.

        Raises:
            CapacityError: all are held.
        """
        async with self._looking:
            if not self._ahead:
                free = self._free()
                await self._book.give_out_soon(free)
                taken = {*self._held.values(), *self._ahead}  # meanwhile
                self._ahead.extend(address for address in free if address not in taken)

    def _look_ahead(self) -> None:
        self._ahead.extend(self._free())
        self._book.give_out(self._ahead)

    def _free(self) -> list[IPv4Address]:
        """The next ones that may be given out."""
        held = set(self._held.values())
        every = map(IPv4Address, range(self._first, self._last + 1))
        free = [address for address in every if address not in held]
        if not free:
            raise CapacityError(
                "no-address", f"all {len(held)} addresses of this node are in use", resolution="stop VMs or add a node"
            )
        free.sort(key=lambda address: self._released.get(address, -math.inf))
        return free[: self._step]

    def claim(self, key: str, address: IPv4Address) -> None:
        """Note that `key` holds this address already.

        Raises:
            ValueError: it is none of this subnet's, or another holds it.
        """
        if not self._first <= int(address) <= self._last:
            raise ValueError(f"{address} is not a VM's address of this subnet")
        if any(held == address and holder != key for holder, held in self._held.items()):
            raise ValueError(f"{address} is held twice")
        self._book.claim(address)
        self._hold(key, address)

    def release(self, key: str, now: float) -> None:
        """Give an address back. Unknown keys are fine."""
        address = self._held.pop(key, None)
        if address is not None:
            self._released[address] = now
            self._book.take_back(address)

    def _hold(self, key: str, address: IPv4Address) -> IPv4Address:
        if address in self._ahead:
            self._ahead.remove(address)
        self._held[key] = address
        return address
