"""Rate limits of real VMs hold, measured inside the guest: never more than was given, and hardly less."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.states import VmState
from plasmavmc.types import MIB, ExecSpec, RateLimit, VmResources
from tests.contract.images_samples import Sample, entry, image, layer
from tests.real.suspend_world import World, world

pytestmark = pytest.mark.real

METER = Path(__file__).with_name("meter.c")
SECONDS = 5
TOLERANCE = 0.1
TRIES = 3
"""Others may keep a guest from its share for a while; nothing of the host can give it more."""
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


async def told(host: World, vm: str, *words: str) -> tuple[int, int, float]:
    """Bytes, operations and seconds that the meter told."""
    session = await host.manager.exec(vm, ExecSpec(("/meter", *words)))
    items = [item async for item in session.output()]
    assert items[-1] == ExecExit(0), items
    count, operations, microseconds = b"".join(item.data for item in items if isinstance(item, ExecOutput)).split()
    return int(count), int(operations), int(microseconds) / 1e6


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
