"""Questions that others are asked, and what of their answers is believed."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from plasmavmc.network.dns import reply, wire
from plasmavmc.network.dns.cache import Cache, key_of
from plasmavmc.network.dns.forward import Forwarder, Patience, mixed_case
from plasmavmc.network.dns.reply import Reply
from plasmavmc.network.dns.upstreams import resolvers_of
from plasmavmc.network.dns.wire import MalformedError, Query
from tests.engine.dns_messages import A, encoded, question, read

FAILED = 2
PATIENCE = Patience(udp_s=0.2, tcp_s=1.0, whole_s=5.0, rounds=1, of_asker=2, of_network=3)
Answer = Callable[[bytes], bytes | None]


def query_of(name: str = "example.com", type_: int = A) -> Query:
    return wire.parse_query(question(name, type_))


def record(owner: bytes, data: bytes, type_: int = A, ttl: int = 60) -> bytes:
    return owner + struct.pack("!2HIH", type_, 1, ttl, len(data)) + data


def answer_to(asked: bytes, *records: bytes, flags: int = 0x8180, authority: tuple[bytes, ...] = ()) -> bytes:
    section = wire.parse_query(asked).question
    head = asked[:2] + struct.pack("!5H", flags, 1, len(records), len(authority), 0)
    return head + section + b"".join((*records, *authority))


def address(asked: bytes, ipv4: str = "192.0.2.1") -> bytes:
    return answer_to(asked, record(b"\xc0\x0c", bytes(map(int, ipv4.split(".")))))


def soa(owner: str, minimum: int, ttl: int = 60) -> bytes:
    data = encoded("ns.example") + encoded("root.example") + struct.pack("!5I", 1, 2, 3, 4, minimum)
    return record(encoded(owner), data, 6, ttl)


@dataclass(slots=True)
class Upstream:
    """A resolver on loopback that answers as it is told; by TCP it is asked on the same port."""

    udp: Answer
    tcp: Answer
    address: tuple[str, int] = ("", 0)
    asked: list[bytes] = field(default_factory=list)
    asked_by_tcp: int = 0


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.upstream.asked.append(data)
        answer = self.upstream.udp(data)
        if answer is not None:
            self.transport.sendto(answer, addr)


@asynccontextmanager
async def upstream(udp: Answer, tcp: Answer = lambda _: None) -> AsyncIterator[Upstream]:
    made = Upstream(udp, tcp)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.asked_by_tcp += 1
        answer = made.tcp(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        if answer is not None:
            writer.write(len(answer).to_bytes(2, "big") + answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.address = server.sockets[0].getsockname()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(made), local_addr=made.address)
    try:
        yield made
    finally:
        transport.close()
        server.close()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def forwarder(*upstreams: Upstream, clock: Clock | None = None) -> Forwarder:
    return Forwarder(lambda: [each.address for each in upstreams], clock or Clock(), PATIENCE)


def told(found: Reply, query: Query) -> list[str]:
    return read(found.to(query, 0, wire.PAYLOAD)).values


async def test_an_answer_is_passed_on_and_kept_as_long_as_it_lasts() -> None:
    clock, query = Clock(), query_of()
    async with upstream(address) as one:
        asking = forwarder(one, clock=clock)
        assert told(await asking.ask(query, "a", "n"), query) == ["192.0.2.1"]
        clock.now += 50
        known = asking.known(query)
        assert known is not None
        kept = known[0].to(query, known[1], wire.PAYLOAD)
        assert read(kept).values == ["192.0.2.1"]
        assert struct.unpack_from("!I", kept, len(kept) - 10)[0] == 10  # seconds that are left
        clock.now += 10
        assert asking.known(query) is None


async def test_each_question_has_an_id_letters_and_a_port_of_its_own() -> None:
    names = [f"name-{number}.example.com" for number in range(8)]
    async with upstream(address) as one:
        asking = forwarder(one)
        for name in names:
            await asking.ask(query_of(name), "a", "n")
    assert len({message[:2] for message in one.asked}) > 4
    sections = [wire.parse_query(message).question for message in one.asked]
    assert any(section != section.lower() for section in sections)
    assert [wire.parse_query(message).edns for message in one.asked] == [0] * len(names)


async def test_one_who_does_not_answer_is_followed_by_the_next_who_is_then_asked_first() -> None:
    async with upstream(lambda _: None) as silent, upstream(address) as good:
        asking, query = forwarder(silent, good), query_of()
        assert told(await asking.ask(query, "a", "n"), query) == ["192.0.2.1"]
        await asking.ask(query_of("other.example.com"), "a", "n")
    assert (len(silent.asked), len(good.asked)) == (1, 2)


async def test_where_nobody_answers_that_is_said_and_kept_for_a_moment() -> None:
    clock, query = Clock(), query_of()
    async with upstream(lambda _: None) as silent:
        asking = forwarder(silent, clock=clock)
        assert (await asking.ask(query, "a", "n")).rcode == FAILED
        assert asking.known(query) is not None
        clock.now += 3
        assert asking.known(query) is None


async def test_an_answer_that_was_cut_is_had_by_tcp() -> None:
    query = query_of()
    async with upstream(lambda asked: answer_to(asked, flags=0x8380), address) as one:
        assert told(await forwarder(one).ask(query, "a", "n"), query) == ["192.0.2.1"]
    assert one.asked_by_tcp == 1


async def test_an_answer_in_other_letters_may_be_forged_and_is_had_by_tcp() -> None:
    def in_small_letters(asked: bytes) -> bytes:
        forged = bytearray(address(asked, "203.0.113.66"))
        section = wire.parse_query(asked).question
        forged[12 : 12 + len(section)] = section.lower()
        return bytes(forged)

    query = query_of("a-name-with-many-letters.example.com")
    async with upstream(in_small_letters, address) as one:
        assert told(await forwarder(one).ask(query, "a", "n"), query) == ["192.0.2.1"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda asked: bytes([asked[0] ^ 1]) + address(asked)[1:],
        lambda asked: address(asked)[:2] + asked[2:3] + address(asked)[3:],
        lambda asked: address(question("evil.example.com", id_=int.from_bytes(asked[:2], "big"))),
        lambda asked: address(asked)[:-2],
        lambda asked: answer_to(asked, record(encoded("evil.example.com"), b"\1\2\3\4")),
        lambda asked: answer_to(
            asked, record(b"\xc0\x0c", encoded("b.example.com"), 5), record(encoded("c.d"), b"\1\2\3\4")
        ),
        lambda asked: b"\0" * 5,
    ],
    ids=["other id", "no answer", "other name", "torn", "other owner", "outside the chain", "nothing"],
)
async def test_an_answer_to_something_else_is_not_believed(wrong: Answer) -> None:
    async with upstream(wrong) as one:
        assert (await forwarder(one).ask(query_of(), "a", "n")).rcode == FAILED


async def test_an_alias_leads_to_its_addresses() -> None:
    def alias(asked: bytes) -> bytes:
        target = encoded("b.example.com")
        return answer_to(asked, record(b"\xc0\x0c", target, 5), record(target, b"\1\2\3\4"))

    query = query_of()
    async with upstream(alias) as one:
        assert told(await forwarder(one).ask(query, "a", "n"), query) == ["b.example.com", "1.2.3.4"]


async def test_that_there_is_none_is_kept_as_long_as_its_zone_says() -> None:
    clock, query = Clock(), query_of("nix.example.com")
    async with upstream(lambda asked: answer_to(asked, flags=0x8183, authority=(soa("example.com", 7),))) as one:
        asking = forwarder(one, clock=clock)
        assert (await asking.ask(query, "a", "n")).rcode == wire.NXDOMAIN
        clock.now += 6.9
        assert asking.known(query) is not None
        clock.now += 0.2
        assert asking.known(query) is None


async def test_that_there_is_none_is_not_kept_where_its_zone_does_not_say_so() -> None:
    query = query_of("nix.example.com")
    for authority in ((), (soa("another.org", 7),)):
        async with upstream(lambda asked, told=authority: answer_to(asked, flags=0x8183, authority=told)) as one:
            asking = forwarder(one)
            assert (await asking.ask(query, "a", "n")).rcode == wire.NXDOMAIN
            assert asking.known(query) is None


async def test_who_does_not_know_edns_is_asked_without() -> None:
    def old(asked: bytes) -> bytes:
        plain = wire.parse_query(asked).edns < 0
        return address(asked) if plain else answer_to(asked, flags=0x8181)

    query = query_of()
    async with upstream(old) as one:
        assert told(await forwarder(one).ask(query, "a", "n"), query) == ["192.0.2.1"]


async def test_several_who_ask_the_same_wait_for_one_answer() -> None:
    query = query_of()
    async with upstream(address) as one:
        asking = forwarder(one)
        await asyncio.gather(*(asking.ask(query, f"asker {number}", "n") for number in range(3)))
    assert len(one.asked) == 1


async def test_one_asker_and_one_network_have_only_so_many_questions_under_way() -> None:
    async with upstream(lambda _: None) as silent:
        asking = forwarder(silent)
        waiting = [
            asyncio.ensure_future(asking.ask(query_of(f"{asker}{number}.example.com"), asker, "n"))
            for asker in ("a", "b", "c")
            for number in range(3)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sum(task.done() for task in waiting) == 6  # two of a, one of b, and then the network has three
        other = asyncio.ensure_future(asking.ask(query_of("d.example.com"), "d", "another"))
        await asyncio.sleep(0)
        assert not other.done()
        await asyncio.gather(*waiting, other)
        await asking.close()


async def test_networks_that_ask_all_they_can_leave_as_much_to_one_that_asked_nothing_yet() -> None:
    patience = Patience(udp_s=0.5, rounds=1, of_asker=8, of_network=32, of_all=128)
    async with upstream(lambda _: None) as silent:
        asking = Forwarder(lambda: [silent.address], Clock(), patience)
        waiting = [
            asyncio.ensure_future(asking.ask(query_of(f"{number}.{asker}.{network}.com"), f"{asker}{network}", network))
            for number in range(8)
            for asker in range(8)
            for network in ("a", "b", "c", "d")
        ]
        late = [asyncio.ensure_future(asking.ask(query_of(f"{number}.com"), "late", "e")) for number in range(8)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in late)
        await asyncio.gather(*waiting, *late)
        await asking.close()


def test_letters_are_mixed_and_nothing_else() -> None:
    asked = wire.parse_query(question("a-9.Example.com")).question
    mixed = {mixed_case(asked) for _ in range(50)}
    assert len(mixed) > 10
    assert {each.lower() for each in mixed} == {asked.lower()}


def test_the_cache_is_bounded_and_the_longest_unused_goes_first() -> None:
    cache = Cache(entries=2)
    kept = Reply(0, (0, 0), b"", (), 60)
    keys = [key_of(query_of(f"{number}.example.com")) for number in range(3)]
    cache.put(keys[0], kept, 0)
    cache.put(keys[1], kept, 0)
    assert cache.get(keys[0], 1) is not None
    cache.put(keys[2], kept, 1)
    assert [cache.get(key, 2) is not None for key in keys] == [True, False, True]
    small = Cache(bytes_=1000)
    for key in keys:
        small.put(key, Reply(0, (0, 0), bytes(300), (), 60), 0)
    assert len(small) == 1


def test_an_answer_with_thousands_of_records_is_not_read() -> None:
    query = query_of()
    data = question("example.com")[:2] + struct.pack("!5H", 0x8180, 1, 60_000, 0, 0) + query.question
    with pytest.raises(MalformedError):
        reply.read(data, query)


def test_the_hosts_resolvers_are_those_of_its_file() -> None:
    lines = (
        "# nameserver 9.9.9.9",
        "nameserver 127.0.0.53",
        "nameserver nonsense",
        "nameserver fd00::1",
        "nameserver 1.1.1.1",
    )
    assert resolvers_of("\n".join(lines)) == ("127.0.0.53", "fd00::1", "1.1.1.1")
