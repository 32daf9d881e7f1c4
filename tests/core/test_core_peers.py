"""Which nodes have a way to each other."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host import rotation
from shellwego.core.nodes import Node, NodeHealth, Underlay
from shellwego.core.peers import (
    ROTATION_STEP_S,
    ROTATION_STEPS,
    PeerNode,
    Rotations,
    is_host_address,
    is_public_key,
    key_step,
    keys_since,
    peers_by_node,
    peers_of,
    unreached,
    without_keys_of_others,
)
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


def test_on_a_platform_with_a_private_network_they_have_their_part_of_it_too() -> None:
    nodes = [host("a", "10.64.0.0/20", "192.0.2.1", joined=False), host("b", "10.64.16.0/20", "192.0.2.2")]
    told = peers_by_node(nodes, "fd12:3456:789a::/48")
    assert {id_: peer.private for id_, peer in told.items()} == {
        "node_a": "fd12:3456:789a::/64",
        "node_b": "fd12:3456:789a:1::/64",
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


KEYS = tuple(b64encode(bytes([number]) * 32).decode() for number in (1, 2))


def sealed(node: Node, keys: tuple[str, ...] = KEYS) -> Node:
    """It is reached by WireGuard."""
    facts = replace(node.facts, underlay=Underlay.WIREGUARD, tunnel_keys=keys, tunnel_port=7084)
    return replace(node, facts=facts)


def test_a_node_that_is_reached_by_wireguard_has_its_keys_and_port_told() -> None:
    told = peers_by_node([sealed(GOOD)])["node_a"]
    assert (told.underlay, told.keys, told.port) == (Underlay.WIREGUARD, KEYS, 7084)


def test_one_that_tells_no_keys_is_reached_by_nobody_and_that_is_told() -> None:
    mute = sealed(host("b", "10.64.16.0/20", "192.0.2.2"), keys=())
    assert peers_by_node([mute, GOOD]).keys() == {"node_a"}
    assert "it tells no public keys of its own for WireGuard" in unreached([mute, sealed(GOOD)])["node_b"]


def test_who_sends_in_clear_never_hears_of_one_that_encrypts_and_that_one_hears_of_all() -> None:
    """It keeps in what would go to the others in clear; an older agent does not know the word."""
    nodes = [GOOD, host("b", "10.64.16.0/20", "192.0.2.2"), sealed(host("c", "10.64.32.0/20", "192.0.2.3"))]
    book = peers_by_node(nodes)
    heard = {id_: {peer.address for peer in peers_of(id_, book)} for id_ in (*book, "node_unknown")}
    assert heard == {
        "node_a": {"192.0.2.2"},
        "node_b": {"192.0.2.1"},
        "node_c": {"192.0.2.1", "192.0.2.2"},
        "node_unknown": set(),
    }


def test_where_some_encrypt_and_some_do_not_all_of_them_are_told_with_the_remedy() -> None:
    nodes = [GOOD, host("b", "10.64.16.0/20", "192.0.2.2"), sealed(host("c", "10.64.32.0/20", "192.0.2.3"))]
    told = unreached(nodes)
    assert told.keys() == {"node_a", "node_b", "node_c"}
    assert "those of c: they would encrypt (wireguard), and it does not" in told["node_a"]
    assert "those of a, b: it would encrypt (wireguard), and they do not" in told["node_c"]
    assert all(words.endswith(" — Give all nodes the same: --underlay wireguard") for words in told.values())
    many = [host(name, f"10.65.{16 * n}.0/20", f"192.0.2.{n + 9}") for n, name in enumerate("defgh")]
    assert "those of d, e, f and 2 more:" in unreached([*many, nodes[2]])["node_c"]
    assert unreached([nodes[2], sealed(GOOD, keys=("e", "f"))]) == {}


def test_a_key_is_its_first_tellers() -> None:
    owner = sealed(GOOD)
    for claimed in (KEYS, (KEYS[1], "another")):
        assert without_keys_of_others("node_b", claimed, [owner]) == ()
    assert without_keys_of_others("node_a", KEYS, [owner]) == KEYS
    assert without_keys_of_others("node_b", ("one", "other"), [owner]) == ("one", "other")


@given(st.floats(0, 4e9), st.integers(1, 9000).map(float), st.floats(0, 100))
def test_the_exchange_of_keys_goes_by_halves_of_a_generation(now: float, generation_s: float, halves: float) -> None:
    later = now + halves * generation_s / 2
    assert abs(key_step(later, generation_s) - key_step(now, generation_s) - halves) <= 1.01
    assert key_step(-now, generation_s) == 0


@given(
    st.floats(0, 4e9), st.sampled_from([3600.0, 86_400.0]), st.integers(0, 5), st.lists(st.floats(0, 9000), max_size=20)
)
def test_an_exchange_that_was_asked_for_passes_four_halves_quickly_and_time_never_goes_back(
    began: float, generation_s: float, earlier: int, waits: list[float]
) -> None:
    before = key_step(began, generation_s, Rotations(earlier, began - 10_000))
    asked = Rotations(earlier + 1, began)
    quick = [key_step(began + n * ROTATION_STEP_S + 1, generation_s, asked) - before for n in range(ROTATION_STEPS)]
    assert quick == [1, 2, 3, 4]
    moments = sorted(began + wait for wait in waits)
    steps = [key_step(moment, generation_s, asked) for moment in moments]
    assert steps == sorted(steps)
    for moment, step in zip(moments, steps, strict=True):
        if moment >= asked.over_at:
            assert step == key_step(moment, generation_s) + ROTATION_STEPS * (earlier + 1)


@pytest.mark.parametrize("first", [0, 1], ids=["early", "late"])
def test_in_an_exchange_that_was_asked_for_both_keys_are_replaced(first: int) -> None:
    """Of the slots each is once the one that nobody uses, in the second half of a generation; by the rules of a node."""
    generations = [rotation.first_generation(first, slot) for slot in rotation.SLOTS]
    before = list(generations)
    for step in range(first + 1, first + 1 + ROTATION_STEPS):
        following = rotation.next_generation(step, generations)
        if following is not None:
            generations[1 - rotation.slot_in_use(step)] = following
    assert all(now > then for now, then in zip(generations, before, strict=True))


def test_a_key_is_as_old_as_since_it_is_told_at_whichever_place() -> None:
    assert keys_since((), (), ("a", "b"), 5.0) == (5.0, 5.0)
    assert keys_since(("a", "b"), (1.0, 2.0), ("a", "c"), 5.0) == (1.0, 5.0)
    assert keys_since(("a", "b"), (1.0,), ("b", "a"), 5.0) == (5.0, 1.0)
    assert keys_since(("a", "b"), (1.0, 2.0), (), 5.0) == ()


@given(st.binary(max_size=40))
def test_a_public_key_has_32_bytes_and_one_form(raw: bytes) -> None:
    text = b64encode(raw).decode()
    assert is_public_key(text) == (len(raw) == 32)
    assert not is_public_key(text + "\n")


@pytest.mark.parametrize(
    "text",
    ["", "node", "127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "10.64.0.1", "10.127.255.255", "::1", "1.2.3"],  # noqa: S104
)
def test_no_host_is_reached_by_such_an_address(text: str) -> None:
    assert not is_host_address(text)


def test_hosts_are_reached_by_private_and_public_addresses() -> None:
    assert all(map(is_host_address, ("10.0.0.5", "192.168.1.7", "203.0.113.9")))
