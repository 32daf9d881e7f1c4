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


@pytest.mark.parametrize("created_at", [0.5, 2.0])
@pytest.mark.parametrize("joined", [True, False])
def test_who_claims_the_address_of_another_takes_it_from_nobody(created_at: float, joined: bool) -> None:
    """Else a node could cut the edges of any other host off, the platform's first one above all."""
    honest = host("b", "10.64.16.0/20", "192.0.2.2", joined=joined)
    liar = host("c", "10.64.32.0/20", "192.0.2.2", created_at=created_at)
    assert peers_by_node([liar, honest])["node_b"] == PeerNode(subnet="10.64.16.0/20", address="192.0.2.2")


def test_who_claims_the_subnet_of_another_is_left_out_and_the_other_is_not() -> None:
    honest = host("b", "10.64.16.0/20", "192.0.2.2")
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
        (host("b", "10.64.0.0/20", "192.0.2.2", joined=False), "their subnet 10.64.0.0/20 is that of node a — "),
        (host("b", "", "192.0.2.2", joined=False), "it does not tell where their addresses are — "),
    ],
)
def test_of_who_is_left_out_it_is_told_why_and_what_to_do(bad: Node, words: str) -> None:
    told = unreached([bad, GOOD])
    assert list(told) == ["node_b"]
    assert told["node_b"].startswith("no other node reaches its VMs: ")
    assert words in told["node_b"]


def test_of_nodes_with_one_address_each_is_told_since_nobody_knows_whose_it_is() -> None:
    same = [host("b", "10.64.16.0/20", "192.0.2.2"), host("c", "10.64.32.0/20", "192.0.2.2", created_at=2.0)]
    told = unreached([*same, GOOD])
    assert told.keys() == {"node_b", "node_c"}
    assert "it tells the address 192.0.2.2, as c does — Give each its own" in told["node_b"]
    assert "as b does" in told["node_c"]


def test_who_is_left_out_is_told_of_and_nobody_else() -> None:
    nodes = [host(name, f"10.64.{16 * (n % 3)}.0/20", f"192.0.2.{n}") for n, name in enumerate("abcdef", 1)]
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
