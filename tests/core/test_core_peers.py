"""Which nodes have a way to each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.peers import PeerNode, is_host_address, peers_by_node, unreached
from tests.core.test_core_drain import node

FIRST = node("a")


def host(name: str, subnet: str, address: str, *, joined: bool = True, created_at: float = 1.0) -> Node:
    facts = replace(FIRST.facts, subnet="" if joined else subnet, address=address)
    return replace(
        FIRST, id=f"node_{name}", name=name, subnet=subnet if joined else "", facts=facts, created_at=created_at
    )


def test_nodes_are_reached_by_their_address_and_have_their_subnet_behind_it() -> None:
    first = host("a", "10.64.0.0/20", "192.0.2.1", joined=False)
    second = host("b", "10.64.16.0/20", "192.0.2.2")
    assert peers_by_node([first, second]) == {
        "node_a": PeerNode(subnet="10.64.0.0/20", address="192.0.2.1"),
        "node_b": PeerNode(subnet="10.64.16.0/20", address="192.0.2.2"),
    }


@pytest.mark.parametrize(("subnet", "address"), [("", "192.0.2.2"), ("10.64.16.0/20", "")])
def test_one_of_which_too_little_is_known_is_reached_by_nobody(subnet: str, address: str) -> None:
    assert peers_by_node([host("b", subnet, address)]) == {}


def test_who_claims_what_is_anothers_is_left_out_and_the_other_is_not() -> None:
    honest = host("b", "10.64.16.0/20", "192.0.2.2")
    same_address = host("c", "10.64.32.0/20", "192.0.2.2", created_at=2.0)
    assert list(peers_by_node([same_address, honest])) == ["node_b"]
    says_so = host("d", "10.64.16.0/20", "192.0.2.3", joined=False, created_at=0.5)
    assert list(peers_by_node([says_so, honest])) == ["node_b"]


def test_what_a_joined_node_says_of_its_subnet_does_not_count() -> None:
    joined = host("b", "10.64.16.0/20", "192.0.2.2")
    lies = replace(joined, facts=replace(joined.facts, subnet="10.64.0.0/20"))
    assert peers_by_node([lies])["node_b"].subnet == "10.64.16.0/20"


GOOD = host("a", "10.64.0.0/20", "192.0.2.1")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            host("b", "10.64.16.0/20", ""),
            "it tells no address by which other hosts reach it — Give one there: --address IP",
        ),
        (host("b", "10.64.16.0/20", "192.0.2.1", created_at=2.0), "the address 192.0.2.1, which is that of node a — "),
        (host("b", "10.64.0.0/20", "192.0.2.2", joined=False), "their subnet 10.64.0.0/20 is that of node a — "),
        (host("b", "", "192.0.2.2", joined=False), "it does not tell where their addresses are — "),
    ],
)
def test_of_who_is_left_out_it_is_told_why_and_what_to_do(bad: Node, words: str) -> None:
    told = unreached([bad, GOOD])
    assert list(told) == ["node_b"]
    assert told["node_b"].startswith("no other node reaches its VMs: ")
    assert words in told["node_b"]


def test_who_is_left_out_is_told_of_and_nobody_else() -> None:
    nodes = [host(name, f"10.64.{16 * n}.0/20", f"192.0.2.{n % 3}") for n, name in enumerate("abcdef", 1)]
    assert peers_by_node(nodes).keys() | unreached(nodes).keys() == {node.id for node in nodes}
    assert not peers_by_node(nodes).keys() & unreached(nodes).keys()


def test_nothing_is_told_where_there_is_no_way_to_have_or_the_node_is_down() -> None:
    alone = host("b", "10.64.16.0/20", "")
    assert unreached([alone]) == {}
    assert unreached([host("a", "", "", joined=False), host("b", "", "", joined=False)]) == {}
    assert unreached([GOOD, replace(alone, health=NodeHealth.DOWN)]) == {}


@pytest.mark.parametrize(
    "text",
    ["", "node", "127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "10.64.0.1", "10.127.255.255", "::1", "1.2.3"],  # noqa: S104
)
def test_no_host_is_reached_by_such_an_address(text: str) -> None:
    assert not is_host_address(text)


def test_hosts_are_reached_by_private_and_public_addresses() -> None:
    assert all(map(is_host_address, ("10.0.0.5", "192.168.1.7", "203.0.113.9")))
