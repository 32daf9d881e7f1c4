"""Private addresses: what they are made of can be read from them again."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host.addresses import (
    MAX_NUMBER,
    is_prefix,
    network_of,
    node_network,
    node_of,
    number_of,
    prefix_from,
    prefix_of,
    private_address,
)
from plasmavmc.host.configuration import POOL

SUBNETS = list(POOL.subnets(new_prefix=20))
prefixes = st.binary(min_size=5, max_size=5).map(lambda id_: IPv6Network((b"\xfd" + id_ + bytes(10), 48)))
numbers = st.integers(1, MAX_NUMBER)
subnets = st.sampled_from(SUBNETS)
hosts = st.integers(2, 4094)


def test_an_address_reads_as_platform_node_network_and_ipv4_address() -> None:
    address = private_address(
        IPv6Network("fd12:3456:789a::/48"), IPv4Network("10.64.16.0/20"), 0xABCDE, IPv4Address("10.64.16.5")
    )
    assert str(address) == "fd12:3456:789a:1:a:bcde:a40:1005"


@given(prefixes, subnets, numbers, hosts)
def test_each_part_can_be_read_again(prefix: IPv6Network, subnet: IPv4Network, number: int, host: int) -> None:
    address = private_address(prefix, subnet, number, subnet[host])
    assert (prefix_of(address), number_of(address)) == (prefix, number)
    assert address.packed[-4:] == subnet[host].packed
    assert node_of(address) == node_network(prefix, subnet)
    assert network_of(address) == network_of(private_address(prefix, SUBNETS[7], number, SUBNETS[7][9]))


@given(prefixes, numbers, numbers, prefixes)
def test_networks_differ_with_their_number_and_their_platform(
    prefix: IPv6Network, one: int, other: int, elsewhere: IPv6Network
) -> None:
    ends = [(prefix, one), (prefix, other), (elsewhere, one)]
    networks = {end: network_of(private_address(*end[:1], SUBNETS[0], end[1], SUBNETS[0][2])) for end in ends}
    assert len(set(networks.values())) == len(set(ends))


def test_each_node_has_a_network_of_its_own() -> None:
    prefix = prefix_from("swg_one")
    assert len({node_network(prefix, subnet) for subnet in SUBNETS}) == len(SUBNETS) == 1024


def test_a_prefix_is_of_the_locally_assigned_addresses_and_follows_from_its_seed() -> None:
    assert is_prefix(prefix_from("swg_one"))
    assert prefix_from("swg_one") == prefix_from("swg_one") != prefix_from("swg_two")
    for network in ("fc00::/48", "fd00::/64", "fd00::/47", "2001:db8::/48"):
        assert not is_prefix(IPv6Network(network))
