"""What travels between the unprivileged side and the helper: whole, bounded, or an error; no descriptor is lost."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host import protocol
from plasmavmc.host.operations import (
    Bridge,
    Keep,
    Limits,
    Member,
    Peer,
    ProcessId,
    Reach,
    RuleSet,
    Swept,
    TapRequest,
    Underlay,
)
from plasmavmc.host.zfs import ZfsSnapshot

BOUNDARIES = Path(__file__).resolve().parents[2] / "docs" / "design" / "trust-boundaries.md"
BRIDGE = Bridge("swgaaaabr", IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20"))
REQUESTS: list[protocol.Request] = [
    protocol.BridgeEnsure(BRIDGE),
    protocol.RulesApply(RuleSet(BRIDGE, (Member("t", "m", IPv4Address("10.64.0.2"), "net", IPv6Address("fd00::2")),))),
    protocol.RulesChange((Member("t", "m", IPv4Address("10.64.0.2"), "net"),), ("u",)),
    protocol.RulesFault(),
    protocol.RoutesApply(
        (Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"), IPv6Network("fd00::/64")),),
        Reach(Underlay.VXLAN, IPv4Address("192.0.2.1")),
    ),
    protocol.RoutesApply(
        (Peer(IPv4Network("10.64.16.0/20"), IPv4Address("192.0.2.2"), None, Underlay.WIREGUARD, ("a", "b"), 7084),),
        Reach(Underlay.WIREGUARD, IPv4Address("192.0.2.1"), 7084, 3),
    ),
    protocol.NetworksInUse(),
    protocol.TapOpen(TapRequest("t", "m", 1, 2)),
    protocol.TapForget("t"),
    protocol.LimitsLack(),
    protocol.TapMake(),
    protocol.TapsGuarding(),
    protocol.TapsUsage(("swgaaaabbbbbbbb",)),
    protocol.UidTake("k"),
    protocol.UidTake("k", seat=True),
    protocol.UidFree("k"),
    protocol.SeatMake(kvm=True),
    protocol.VmSpawn("k", ("a", "b"), Limits(1, 2), ("f",)),
    protocol.VmLimit("k", Limits(1, 2)),
    protocol.VmSignal("k", ProcessId(1, 2), 9),
    protocol.VmMemory("k", ProcessId(1, 2)),
    protocol.VmReap("k", ProcessId(1, 2)),
    protocol.VmFence("k", 12.5),
    protocol.JailPrepare("k", ("kernel", "disk0")),
    protocol.JailOpen("k"),
    protocol.JailSpawn("k", Limits(1, 2)),
    protocol.JailSpawn("k", Limits(1, 2), TapRequest("swgabcdefghijkl", "02:00:00:00:00:01")),
    protocol.JailRemove("k"),
    protocol.CgroupPlace("haproxy", ProcessId(1, 2)),
    protocol.ResolverSockets(),
    protocol.Listen("127.0.0.1", 80),
    protocol.ZfsOpen(),
    protocol.ZfsLook(),
    protocol.ZfsDo(ZfsSnapshot("vol_1", "snap_1", 1024)),
    protocol.Sweep(Keep({"k": ProcessId(1, 2)}, (ProcessId(3, 4),))),
    protocol.Dismantle(),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


def descriptor() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_arrives_as_it_was_sent(request_: protocol.Request) -> None:
    assert protocol.decode_request(protocol.encode(request_)) == request_


def test_the_list_above_names_every_request() -> None:
    assert {type(request) for request in REQUESTS} == set(protocol.Request.__args__)  # type: ignore[attr-defined]


def test_every_operation_is_told_with_its_arguments_and_checks() -> None:
    """The list by which the helper is audited."""
    section = BOUNDARIES.read_text().partition("## The operations")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    assert all(len(row) == 3 and all(row) for row in rows)
    told = {name for operation, _, _ in rows for name in re.findall(r"`([a-z_]+)`", operation)}
    assert told == {re.sub(r"(?<=.)([A-Z])", r"_\1", type(request).__name__).lower() for request in REQUESTS}


def test_an_answer_arrives_with_its_type() -> None:
    networks = (IPv4Network("10.0.0.0/8"),)
    assert protocol.decode(protocol.encode(networks), tuple[IPv4Network, ...]) == networks
    assert protocol.decode(protocol.encode(Swept(taps=("t",))), Swept) == Swept(taps=("t",))
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(protocol.encode("no number"), int)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_request_are_an_error(data: bytes) -> None:
    try:
        protocol.decode_request(data)
    except protocol.ProtocolError:
        return


@given(st.sampled_from(REQUESTS), st.integers(0, 200), st.integers(0, 255))
def test_a_request_with_a_changed_byte_is_another_request_or_an_error(
    request_: protocol.Request, place: int, value: int
) -> None:
    data = bytearray(protocol.encode(request_))
    data[place % len(data)] = value
    try:
        protocol.decode_request(bytes(data))
    except protocol.ProtocolError:
        return


@given(st.integers(0, 5 * protocol.PACKET_BYTES))
def test_a_message_of_any_length_is_whole_again(length: int) -> None:
    data = bytes(length)
    assembler = protocol.Assembler()
    messages = [assembler.add(packet) for packet in protocol.packets_of(data)]
    assert [message for message in messages if message is not None] == [protocol.Message(data)]
    assert all(len(packet) <= protocol.PACKET_BYTES for packet in protocol.packets_of(data))


def test_a_message_without_bound_is_refused_on_both_sides() -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.packets_of(bytes(protocol.MAX_PACKETS * protocol.PACKET_BYTES))
    assembler = protocol.Assembler()
    for _ in range(protocol.MAX_PACKETS):
        assembler.add(b"\x01more")
    with pytest.raises(protocol.ProtocolError):
        assembler.add(b"\x01more")


def test_a_refused_packet_leaves_no_descriptor_open() -> None:
    first, second = descriptor(), descriptor()
    assembler = protocol.Assembler()
    assembler.add(b"\x01", (first,))
    with pytest.raises(protocol.ProtocolError):
        assembler.add(b"\x00", (second,))
    assert not is_open(first)
    assert not is_open(second)


def test_what_was_begun_and_never_ended_is_closed() -> None:
    fd = descriptor()
    assembler = protocol.Assembler()
    assembler.add(b"\x01", (fd,))
    assembler.discard()
    assert not is_open(fd)


def test_descriptors_arrive_close_on_exec(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    fd = descriptor()
    socket.send_fds(left, [b"\x00x"], [fd])
    os.close(fd)
    data, fds = protocol.receive_packet(right)
    assert data == b"\x00x"
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    protocol.close_all(fds)


def test_too_many_descriptors_are_refused_and_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    fd = descriptor()
    socket.send_fds(left, [b"\x00"], [fd] * (protocol.MAX_DESCRIPTORS + 8))
    os.close(fd)
    before = open_descriptors()
    with pytest.raises(protocol.ProtocolError):
        protocol.receive_packet(right)
    assert open_descriptors() == before


def test_a_packet_that_is_too_long_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.send(bytes(protocol.PACKET_BYTES + 1))
    with pytest.raises(protocol.ProtocolError):
        protocol.receive_packet(right)


def test_the_end_of_the_connection_is_an_empty_packet(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.close()
    assert protocol.receive_packet(right) == (b"", ())


def test_one_who_ends_with_an_answer_unread_has_ended(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    right.send(b"an answer")
    left.close()
    assert protocol.receive_packet(right) == (b"", ())
