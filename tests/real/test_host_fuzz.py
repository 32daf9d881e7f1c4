"""The root helper against a client that somebody has taken over: whatever is asked, in any order and with any descriptors,
is refused or answered, the helper lives on, and nothing is left that a sweep does not find."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host import protocol
from plasmavmc.host.configuration import WASM_WORKER
from plasmavmc.host.operations import (
    Bridge,
    Keep,
    Limits,
    Member,
    Peer,
    ProcessId,
    Reach,
    RuleSet,
    TapRequest,
    Underlay,
)
from plasmavmc.host.ports import OpenPort, Spot, Transport
from plasmavmc.host.processes import read_process
from plasmavmc.host.zfs import ZfsClone, ZfsDestroy
from plasmavmc.types import GIB, MIB, mac_of
from tests.contract.host_parts import KEYS, LIMITS, ONE, TWO, HostRig
from tests.contract.host_rig import LISTENER, RealHelper, real_helper, rig_of

pytestmark = pytest.mark.real

ANSWER_S = 60.0
EXAMPLES, NIGHTLY_EXAMPLES = 150, 5000
HOSTILE_TEXT = (
    *(
        "",
        ".",
        "..",
        "../..",
        "/",
        "/etc/passwd",
        "\0",
        "a\0b",
        "%s%n",
        "é",
        "\n",
        "a" * 5000,
        "-name",
        "--",
        "$(reboot)",
    ),
    *("@qmp@", "@kvm@", "fd=3", "kernel", "disk0", "disk100", "eth0", "lo", "swg", "cgroup.procs", "@api.sock"),
)
DESCRIPTORS: tuple[Callable[[], int], ...] = (
    lambda: os.open(os.devnull, os.O_RDWR),
    lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    lambda: os.open("/", os.O_PATH),
    lambda: os.open("/etc/passwd", os.O_RDONLY),
    lambda: os.open("/proc/self/mem", os.O_RDWR),
    lambda: os.memfd_create("planted", os.MFD_ALLOW_SEALING),
    lambda: os.pidfd_open(os.getpid()),
    lambda: socket.socket(socket.AF_UNIX).detach(),
    lambda: os.eventfd(0),
)


@dataclass(frozen=True)
class Attempt:
    request: protocol.Request
    descriptors: tuple[int, ...]
    """Which of the kinds above."""


@pytest.fixture
async def helper(tmp_path: Path) -> AsyncIterator[RealHelper]:
    async with real_helper(tmp_path, publish=range(20_000, 20_010)) as made:
        yield made


def attempts(rig: HostRig, pids: tuple[int, ...]) -> st.SearchStrategy[Attempt]:
    """Requests whose every field may be what it should be, what it must not be, or nonsense."""
    names = rig.names
    good = (ONE, TWO, names.bridge, names.tap(ONE), names.process(ONE), mac_of(ONE), "net_a", "haproxy", rig.vmm)
    text = st.sampled_from((*good, WASM_WORKER, LISTENER.address, *HOSTILE_TEXT)) | st.text(max_size=12)
    extremes = (0, -1, 1, 2**31, 2**32 + 1, -(2**31) - 1, 2**63 - 1, -(2**63), MIB, 64 * GIB, LISTENER.port)
    number = st.sampled_from((*extremes, *pids)) | st.integers(-(2**63), 2**63 - 1)
    key = st.sampled_from((ONE, TWO)) | text
    address = st.sampled_from(("0.0.0.0", "10.64.16.1", "10.64.16.2", "127.0.0.1", "255.255.255.255"))  # noqa: S104
    network = st.sampled_from(("0.0.0.0/0", "10.64.16.0/20", "10.127.0.0/20", "127.0.0.0/8", "10.64.16.0/32"))
    bridge = st.builds(Bridge, text, address.map(IPv4Address), network.map(IPv4Network)) | st.just(rig.bridge)
    tap = st.builds(TapRequest, text, text, number, number) | st.just(rig.tap())
    private = st.none() | st.sampled_from(("::", "fd00::1:a40:1002", "fd00:0:0:1:0:1:a40:1002", "ff02::1")).map(
        IPv6Address
    )
    member = st.builds(Member, text, text, address.map(IPv4Address), text, private) | st.just(rig.member(ONE, 2))
    wide = st.none() | st.sampled_from(("::/0", "fd00:0:0:3f0::/64", "fe80::/64", "fd00::/48")).map(IPv6Network)
    underlay, keys = st.sampled_from(Underlay), st.lists(text | st.sampled_from(KEYS), max_size=3).map(tuple)
    peer = st.builds(Peer, network.map(IPv4Network), address.map(IPv4Address), wide, underlay, keys, number)
    reach = st.just(Reach()) | st.builds(Reach, underlay, st.none() | address.map(IPv4Address), number, number)
    spot = st.builds(Spot, address.map(IPv4Address), st.sampled_from((80, 20_000, *extremes)), private)
    spots = st.lists(spot, max_size=3).map(tuple)
    ports = st.lists(
        st.builds(OpenPort, st.sampled_from(Transport), st.sampled_from((22, 20_000, *extremes)), spots, spots),
        max_size=3,
    ).map(tuple)
    true_ids = [found.id for pid in pids if (found := read_process(pid)) is not None]
    process = st.sampled_from(true_ids) | st.builds(ProcessId, number, number)
    limits = st.just(LIMITS) | st.builds(Limits, number, number, number)
    words = st.lists(text, max_size=6).map(tuple)
    argv = words | words.map(lambda more: (*rig.argv(), *more)) | st.permutations(rig.argv()).map(tuple)
    worker = st.just((WASM_WORKER, "-name", names.process(ONE), "-control", "@control@"))
    requests = st.one_of(
        st.builds(protocol.BridgeEnsure, bridge),
        st.builds(
            protocol.RulesApply, st.builds(RuleSet, bridge, st.lists(member, max_size=4).map(tuple), ports=ports)
        ),
        st.builds(protocol.RoutesApply, st.lists(peer, max_size=3).map(tuple), reach),
        st.builds(
            protocol.RulesChange,
            st.lists(member, max_size=3).map(tuple),
            st.lists(st.text(max_size=15), max_size=3).map(tuple),
            st.none() | ports,
        ),
        st.builds(protocol.RulesFault),
        st.builds(protocol.NetworksInUse),
        st.builds(protocol.TapOpen, tap),
        st.builds(protocol.TapForget, text | st.just(rig.tap().name)),
        st.builds(protocol.LimitsLack),
        st.builds(protocol.TapMake),
        st.builds(protocol.TapsGuarding),
        st.builds(protocol.TapsUsage, st.lists(text | st.just(rig.tap().name), max_size=3).map(tuple)),
        st.builds(protocol.UidTake, key, st.booleans()),
        st.builds(protocol.UidFree, key),
        st.builds(protocol.SeatMake, st.booleans()),
        st.builds(protocol.VmSpawn, key, argv | worker, limits, words | st.just(("control",))),
        st.builds(protocol.VmLimit, key, limits),
        st.builds(protocol.VmSignal, key, process, number),
        st.builds(protocol.VmMemory, key, process),
        st.builds(protocol.VmReap, key, process),
        st.builds(protocol.VmFence, key, st.none() | st.floats()),
        st.builds(protocol.JailPrepare, key, words),
        st.builds(protocol.JailOpen, key),
        st.builds(protocol.JailSpawn, key, limits, st.none() | tap),
        st.builds(protocol.JailRemove, key),
        st.builds(protocol.CgroupPlace, st.just("haproxy") | text, process),
        st.builds(protocol.Listen, text, number),
        st.builds(protocol.ResolverSockets),
        st.builds(protocol.ZfsOpen),
        st.builds(protocol.ZfsLook),
        st.builds(
            protocol.ZfsDo,
            st.builds(ZfsDestroy, text) | st.builds(ZfsClone, text, text, text, number, st.booleans(), st.booleans()),
        ),
        st.builds(protocol.Sweep, st.builds(Keep, st.dictionaries(key, process, max_size=3), st.tuples(process))),
        st.builds(protocol.Dismantle),
    )
    kinds = st.lists(st.integers(0, len(DESCRIPTORS) - 1), max_size=6).map(tuple)
    return st.builds(Attempt, requests, kinds)


class Attacker:
    """Who has the helper's socket in his hands."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def ask(self, attempt: Attempt) -> protocol.Reply:
        """Send a request; what came back is well formed, and its descriptors are closed."""
        fds = [DESCRIPTORS[kind]() for kind in attempt.descriptors]
        try:
            first, *rest = protocol.packets_of(protocol.encode(attempt.request))
            socket.send_fds(self._socket, [first], fds)
            for packet in rest:
                self._socket.send(packet)
        finally:
            protocol.close_all(fds)
        assembler = protocol.Assembler()
        message = None
        while message is None:
            packet, came = protocol.receive_packet(self._socket)
            assert packet, "the helper has ended"
            message = assembler.add(packet, came)
        protocol.close_all(message.fds)
        return protocol.decode(message.data, protocol.Reply)


@contextmanager
def taken_over(helper: RealHelper) -> Iterator[Attacker]:
    """Speak on the connection in the client's place."""
    loop, client = asyncio.get_running_loop(), helper.host
    loop.remove_reader(client._socket)
    client._socket.settimeout(ANSWER_S)
    try:
        yield Attacker(client._socket)
    finally:
        client._socket.setblocking(False)
        loop.add_reader(client._socket, client._on_readable)


def test_every_operation_is_attempted() -> None:
    """A new one must be added above."""
    source = Path(__file__).read_text()
    operations = protocol.Request.__args__
    assert [kind.__name__ for kind in operations if f"protocol.{kind.__name__}" not in source] == []


async def test_whatever_is_asked_is_refused_or_answered_and_leaves_nothing(
    helper: RealHelper, request: pytest.FixtureRequest
) -> None:
    nightly = request.config.getoption("--nightly")
    rig = rig_of(helper)
    await rig.host.networks_in_use()  # it has started
    before = traces(helper)
    lease = Attempt(protocol.UidTake(ONE), ())

    with taken_over(helper) as attacker:

        @settings(
            max_examples=NIGHTLY_EXAMPLES if nightly else EXAMPLES,
            derandomize=not nightly,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(attempts(rig, (1, os.getpid(), helper.process.pid)), min_size=1, max_size=8))
        def attack(tried: list[Attempt]) -> None:
            for attempt in (lease, *tried):
                reply = attacker.ask(attempt)
                if reply.failure is not None:
                    assert reply.failure.code != "helper-defect", (attempt, reply.failure)
                    assert reply.failure.brief

        await asyncio.to_thread(attack)
    assert helper.process.poll() is None
    await rig.host.sweep(Keep())
    await rig.host.dismantle()
    assert traces(helper) == before


async def test_a_helper_whose_complaints_nobody_reads_goes_on(helper: RealHelper) -> None:
    """They are on a pipe here, which is full after some hundred."""
    async with asyncio.timeout(ANSWER_S):
        for _ in range(1000):
            with pytest.raises(HostError):
                await helper.host.uid_take("x" * 100)


def traces(helper: RealHelper) -> dict[str, object]:
    """What could be left of requests: in the kernel, in files, and in the helper itself."""
    run_root = helper.configuration.run_root
    groups = Path("/sys/fs/cgroup").glob(f"**/{helper.names.cgroup}")
    children = Path(f"/proc/{helper.process.pid}/task/{helper.process.pid}/children").read_text().split()
    return {
        "links": helper.namespace.links(),
        "tables": helper.names.key in helper.namespace.run("nft", "list", "tables"),
        "cgroups": {child.name for group in groups for child in group.iterdir() if child.is_dir()},
        "uids": sorted(path.name for path in (run_root / "uids").iterdir()),
        "jails": sorted(helper.configuration.jail_root.glob("*/*/*")),
        "descriptors": len(list(Path(f"/proc/{helper.process.pid}/fd").iterdir())),
        "children": children,
    }
