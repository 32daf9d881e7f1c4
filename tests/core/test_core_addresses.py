"""What the platform knows of private addresses is what its nodes make of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host import addresses as engine
from shellwego.core import addresses
from shellwego.core.subnets import POOL, PREFIX

SUBNETS = [str(subnet) for subnet in POOL.subnets(new_prefix=PREFIX)]


@given(st.integers(0, 2**40 - 1), st.sampled_from(SUBNETS), st.integers(1, addresses.MAX_NUMBER), st.integers(2, 4094))
def test_platform_and_engine_agree(global_id: int, subnet: str, number: int, host: int) -> None:
    prefix = addresses.prefix_of(global_id)
    assert engine.is_prefix(IPv6Network(prefix))
    ipv4 = IPv4Network(subnet)[host]
    made = engine.private_address(IPv6Network(prefix), IPv4Network(subnet), number, IPv4Address(ipv4))
    assert addresses.private_address(prefix, subnet, number, str(ipv4)) == str(made)
    assert addresses.node_network(prefix, subnet) == str(engine.node_network(IPv6Network(prefix), IPv4Network(subnet)))


def test_a_global_id_is_of_forty_bits_and_follows_from_its_seed() -> None:
    ids = {addresses.global_id_from(f"net_{number}") for number in range(100)}
    assert len(ids) == 100
    assert max(ids) < 2**40
    assert addresses.global_id_from("net_1") in ids
