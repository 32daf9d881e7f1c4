"""What real VMs take of their host. Rate limits hold, measured inside the guest: never more than was given, and hardly less.
Memory that a guest frees comes back, and what it goes on with is its own through a suspend."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.states import VmState
from plasmavmc.types import MIB, ExecSpec, LogStream, RateLimit, VmResources
from tests.contract.images_samples import Sample, entry, image, layer
from tests.real.suspend_world import NOTHING, World, world

pytestmark = pytest.mark.real

METER = Path(__file__).with_name("meter.c")
SECONDS = 5
TOLERANCE = 0.1
TRIES = 3
"""Others may keep a guest from its share for a while; nothing of the host can give it more."""
RECEIVE, TRANSMIT = RateLimit(bytes_per_second=2_000_000), RateLimit(bytes_per_second=1_000_000)
PAYLOAD = 1448 / 1514
"""What of a full frame is an application's: without the headers of Ethernet, IP and TCP."""
DISK = RateLimit(bytes_per_second=3 * MIB, operations_per_second=150)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    program = tmp_path_factory.mktemp("meter") / "meter"
    subprocess.run(["musl-gcc", "-static", "-Os", "-s", "-o", program, METER], check=True)
    return image(layer(entry("meter", program.read_bytes(), mode=0o755)), config={"Entrypoint": ["/meter"]})


@pytest.fixture
async def host(tmp_path: Path, sample: Sample) -> AsyncIterator[World]:
    async with world(tmp_path, sample, tmp_path / "images") as made:
        yield made


async def waiting(host: World, **changes: object) -> str:
    """A VM in which the meter can be run; its id."""
    spec = host.spec("one", command=("wait",), **changes)
    host.manager.create(spec)
    host.manager.start(spec.id)
    await host.reaches(spec.id, VmState.RUNNING)
    return spec.id


_PEER = """
import socket, sys, time
verb, address, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
deadline = time.monotonic() + 60
while True:
    try:
        peer = socket.create_connection((address, port))
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
if verb == "send":
    try:
        while True:
            peer.sendall(bytes(65536))
    except OSError:
        sys.exit()
began, count = None, 0
first = time.monotonic() + 1
while began is None or now - began < seconds:
    got = len(peer.recv(65536))
    now = time.monotonic()
    if began is None:
        began = now if now > first else None
    else:
        count += got
print(count, now - began)
"""
"""Speaks to a VM from the host: sends until it goes away, or counts what it sends."""


async def peer(host: World, vm: str, verb: str, port: int) -> str:
    (endpoint,) = host.manager.get(vm).status.endpoints
    command = [*host.helper.namespace.enter, sys.executable, "-c", _PEER, verb, endpoint.removeprefix("tcp:")]
    process = await asyncio.create_subprocess_exec(*command, str(port), str(SECONDS), stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def received(host: World, vm: str) -> float:
    """Bytes a second that a VM gets of a stream, as it sees it."""
    sending = asyncio.create_task(peer(host, vm, "send", 9001))
    count, _, seconds = await told(host, vm, "sink", "9001", str(SECONDS))
    await sending
    return count / seconds


async def sent(host: World, vm: str) -> float:
    """Bytes a second that come of a stream of a VM, as the host sees it."""
    source = await host.manager.exec(vm, ExecSpec(("/meter", "source", "9002")))
    count, seconds = (await peer(host, vm, "count", 9002)).split()
    await source.aclose()
    return int(count) / float(seconds)


async def told(host: World, vm: str, *words: str) -> tuple[int, int, float]:
    """Bytes, operations and seconds that the meter told."""
    session = await host.manager.exec(vm, ExecSpec(("/meter", *words)))
    items = [item async for item in session.output()]
    assert items[-1] == ExecExit(0), items
    count, operations, microseconds = b"".join(item.data for item in items if isinstance(item, ExecOutput)).split()
    return int(count), int(operations), int(microseconds) / 1e6


async def test_a_network_is_held_to_its_bytes_each_way_and_no_connection_starves(host: World) -> None:
    network = replace(host.spec("one").networks[0], receive=RECEIVE, transmit=TRANSMIT)
    vm = await waiting(host, resources=VmResources(memory_bytes=128 * MIB), networks=(network,))
    for way, measured, limit in (("receive", received, RECEIVE), ("transmit", sent, TRANSMIT)):
        for _ in range(TRIES):
            share = await measured(host, vm) / (limit.bytes_per_second * PAYLOAD)
            assert share < 1 + TOLERANCE, way
            if share > 1 - TOLERANCE:
                break
        else:
            raise AssertionError(f"{way} came to {share:.2f} of its limit only")
    await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING


async def test_a_disk_is_held_to_its_bytes_and_operations(host: World) -> None:
    vm = await waiting(host, resources=VmResources(memory_bytes=128 * MIB, disk_limit=DISK))
    for way, block in (("write", 65_536), ("read", 4096)):
        for _ in range(TRIES):
            count, operations, seconds = await told(host, vm, "disk", way, str(block), str(SECONDS))
            of_bytes = count / seconds / DISK.bytes_per_second
            of_operations = operations / seconds / DISK.operations_per_second
            share = max(of_bytes, of_operations)
            assert share < 1 + TOLERANCE, f"{way} of {block} bytes"
            if share > 1 - TOLERANCE:
                break
        else:
            raise AssertionError(f"{way} of {block} bytes came to {share:.2f} of its limit only")


async def resident(host: World, vm: str) -> int:
    return (await host.manager.describe(vm)).status.usage.memory_rss_bytes


async def test_memory_that_a_guest_frees_comes_back_to_the_host_and_a_suspend_keeps_the_rest(host: World) -> None:
    if not host.parts.registry.get("kvm").capabilities.balloon:
        pytest.skip("the guest's kernel in the cache has no balloon driver: plasmavmc kernel fetch --update")
    vm = await waiting(host, resources=VmResources(memory_bytes=384 * MIB))
    holding = await host.manager.exec(vm, ExecSpec(("/meter", "hold", "200")))
    said = holding.output()
    assert await anext(said) == ExecOutput(LogStream.STDOUT, b"held\n")
    held = await resident(host, vm)
    await holding.send_eof()
    assert [item async for item in said] == [ExecExit(0)]
    async with asyncio.timeout(60):
        while await resident(host, vm) > held - 150 * MIB:  # noqa: ASYNC110 - memory has no event
            await asyncio.sleep(0.05)
    await host.manager.suspend(vm)
    assert host.snapshot(vm).joinpath("memory").stat().st_blocks * 512 < held - 150 * MIB
    await host.manager.resume(vm)
    assert await told(host, vm, "disk", "read", "4096", "1")
    await host.manager.delete(vm)
    assert await host.leftovers() == NOTHING
