"""Answers that are kept to be given quickly: what they take, and in which order they have their records."""

from __future__ import annotations

import random
import struct
import tracemalloc

from plasmavmc.network.dns import wire
from plasmavmc.network.dns.hot import HotAnswers
from plasmavmc.network.dns.names import Askers, Names, NetworkNames
from plasmavmc.network.dns.resolver import HOT_BYTES_OF_NETWORK, Resolver
from plasmavmc.network.dns.turns import Turns
from plasmavmc.network.dns.wire import Record
from tests.engine.dns_messages import SHOP, edns, question, read, told_resolver

LETTERS = random.Random(1)
MIB = 1 << 20


def in_letters(name: str) -> str:
    return "".join(LETTERS.choice((each.lower(), each.upper())) for each in name)


def padded(message: bytes, size: int) -> bytes:
    """The question with an option of so many random bytes."""
    padding = struct.pack("!2H", 65_001, size) + LETTERS.randbytes(size)
    return message[:10] + b"\0\1" + message[12:] + edns(1232)[:-2] + len(padding).to_bytes(2, "big") + padding


def test_one_question_in_very_many_ways_takes_no_more_memory_than_a_network_may_have() -> None:
    resolver = Resolver(per_second=10_000)
    addresses = tuple(f"10.64.0.{number}" for number in range(2, 72))
    resolver.tell_names(Names(networks={"net_shop": NetworkNames(hosts={"shop-with-many": addresses})}))
    resolver.tell_askers(Askers(networks={SHOP: "net_shop"}))
    messages = [padded(question(in_letters("shop-with-many.internal")), 1000) for _ in range(2000)]
    tracemalloc.start()
    try:
        for message in messages:
            assert len(read(resolver.hear(message, SHOP, udp=True)).records) == 70
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < HOT_BYTES_OF_NETWORK + MIB


def test_addresses_come_in_turn_also_for_those_who_ask_in_other_letters_each_time() -> None:
    resolver = told_resolver()
    asked = [question(in_letters("web.internal")) for _ in range(6)]
    first = [read(resolver.hear(message, SHOP, udp=True)).values[0] for message in asked]
    assert first == ["10.64.0.2", "10.64.0.3", "10.64.0.4"] * 2


def test_all_networks_that_have_vms_here_share_what_there_is_and_one_that_has_none_left_keeps_nothing() -> None:
    networks = [f"net_{number}" for number in range(64)]
    askers = {f"10.64.1.{number}": network for number, network in enumerate(networks)}
    hosts = NetworkNames(hosts={"web": ("10.64.0.2",)})
    resolver = Resolver(per_second=10_000)
    resolver.tell_names(Names(networks=dict.fromkeys(networks, hosts)))
    resolver.tell_askers(Askers(networks=askers))
    tracemalloc.start()
    try:
        for asker in askers:
            for _ in range(400):
                resolver.hear(padded(question("web.internal"), 1000), asker, udp=True)
        used, _ = tracemalloc.get_traced_memory()
        resolver.tell_askers(Askers(networks={"10.64.1.0": "net_0"}))
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 16 * MIB < used < 33 * MIB
    assert left < 4 * MIB


def test_the_oldest_go_first_and_without_room_none_is_kept() -> None:
    hot = HotAnswers()
    hot.keep(b"a", b"answer")
    assert hot.get(b"a") is None
    hot.give_room(2 * 500)
    for rest in (b"a", b"b", b"c"):
        hot.keep(rest, b"answer to " + rest)
    assert [hot.get(rest) for rest in (b"a", b"b", b"c")] == [None, b"answer to b", b"answer to c"]
    hot.give_room(0)
    assert (len(hot), hot.used) == (0, 0)


def test_records_of_any_length_come_whole_in_every_order() -> None:
    records = [Record(wire.TXT, 5, bytes(length)) for length in (1, 7, 3)]
    each = [wire.section((record,)).data for record in records]
    turns = Turns(records, wire.NO_RECORDS)
    orders = [b"".join(each[first:] + each[:first]) for first in (0, 1, 2, 0)]
    assert [turns.take() for _ in range(4)] == orders
    assert (len(turns), turns.size) == (3, sum(map(len, each)))
