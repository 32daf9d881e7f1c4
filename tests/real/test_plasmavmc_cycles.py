"""VMs that come and go on a real `plasmavmc serve`: after each, host, files and both its processes are as before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import pytest

from plasmavmc.rpc.api import ImageOrder, Upload
from plasmavmc.rpc.client import EngineClient, connect
from plasmavmc.states import VmState
from plasmavmc.types import MIB, NetworkSpec, VmResources, VmSpec
from tests.contract.images_samples import chunked, entry, image, layer, oci_layout
from tests.contract.wasm_modules import LOOP
from tests.real.guest_vm import compile_app
from tests.real.test_plasmavmc_refusals import probed, told, traces
from tests.real.test_plasmavmc_serve import HOME, PATIENCE_S, Server, created, reached, scratch

pytestmark = pytest.mark.real

MANY = pytest.mark.nightly
WARM_UP = 2
"""What is made once: a network, caches, workers that wait for a VM."""


@pytest.fixture
def server() -> Iterator[Server]:
    with scratch() as made:
        made.start()
        yield made


def amounts(server: Server) -> dict[str, object]:
    """How much there is of what VMs could leave. By number: a worker that waits for the next VM has another name each time.
    Logs outlive their VM for a day."""
    found = traces(server)
    kinds = [str(each).split()[0] for each in found.host]
    files = [path for path in found.files if "/logs/" not in path]
    return {"host": sorted(kinds), "files": len(files), "descriptors": sorted(found.descriptors.values())}


async def steady(server: Server) -> dict[str, object]:
    """What there is when nothing has changed for some seconds: the next worker is started beside."""
    async with asyncio.timeout(PATIENCE_S):
        found, since = amounts(server), 0
        while since < 8:
            await asyncio.sleep(0.25)
            now = amounts(server)
            found, since = now, since + 1 if now == found else 0
        return found


async def cycle(client: EngineClient, spec: VmSpec) -> None:
    await created(client, spec)
    await reached(client, spec.id, VmState.RUNNING)
    await client.vms.delete(spec.id)


async def prepared(client: EngineClient, backend: str, directories: pytest.TempPathFactory) -> Iterator[VmSpec]:
    """Register an image for a backend; VMs of it without end."""
    order, data = ImageOrder(HOME, Upload.WASM, "app:v1"), LOOP
    spec = VmSpec("", HOME, "", "app:v1", resources=VmResources(memory_bytes=64 * MIB))
    if backend == "kvm":
        program = compile_app(directories.mktemp("app"))
        sample = image(layer(entry("app", program, mode=0o755)), config={"Entrypoint": ["/app", "serve"]})
        order, data = ImageOrder(HOME, Upload.TAR, "app:v1"), oci_layout(sample)
        spec = replace(spec, resources=VmResources(memory_bytes=128 * MIB), networks=(NetworkSpec("", "net_1"),))
    await told(client.images.register(order, chunked(data)))
    return (replace(spec, id=f"vm_{number}", name=f"n{number}") for number in count())


@pytest.mark.parametrize(
    ("backend", "cycles"), [("wasm", 10), pytest.param("wasm", 200, marks=MANY), pytest.param("kvm", 200, marks=MANY)]
)
async def test_vms_that_came_and_went_left_nothing(
    server: Server, backend: str, cycles: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with connect(server.address) as client:
        await probed(client)
        specs = await prepared(client, backend, tmp_path_factory)
        for spec in islice(specs, WARM_UP):
            await cycle(client, spec)
        before = await steady(server)
        for spec in islice(specs, cycles):
            await cycle(client, spec)
        assert await steady(server) == before
        await client.images.delete("app:v1", HOME)
