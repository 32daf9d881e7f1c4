"""W1: a warm start of a WebAssembly VM, from `create_vm` to its READY, beside a bare instantiation of the same module.

`python -m bench.wasm`, as root, is the measured side: it splits as the platform does, and prints its samples.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import wasmtime

from bench.measure import Result, median, percentile
from plasmavmc.guest.api import GuestConfig, GuestHello, GuestReady
from plasmavmc.host.client import HelperHost
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.operations import Keep
from plasmavmc.host.split import split
from plasmavmc.hypervisor.backend import DiskPlan, VmPlan
from plasmavmc.hypervisor.wasm.backend import WasmBackend
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.hypervisor.wasm.engine import Run, Sandbox
from plasmavmc.types import MIB, SYSTEM_SCOPE, VmSpec, vm_key

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
GOAL_MS = 10.0
NOBODY = 65534
MODULE = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))'))


async def start(backend: WasmBackend, directory: Path, number: int) -> float:
    """Start and remove one VM; milliseconds until its module ran."""
    spec = VmSpec(f"vm_{number}", SYSTEM_SCOPE, "bench", "sha256:" + "0" * 64)
    runtime_dir = directory / vm_key(spec.id)
    runtime_dir.mkdir()
    fd = os.open(directory / "module", os.O_RDONLY | os.O_CLOEXEC)
    await backend.workers.settled()
    began = time.perf_counter()
    plan = VmPlan(vm_key(spec.id), runtime_dir, directory, directory, (DiskPlan("image", fd, read_only=True),))
    handle = await backend.create_vm(spec, plan)
    channel = await backend.start_vm(handle)
    took = 0.0
    async for event in channel.events():
        if isinstance(event, GuestHello):
            await channel.configure(GuestConfig(argv=("/module.wasm",)))
        elif isinstance(event, GuestReady):
            took = (time.perf_counter() - began) * 1000
            break
    await channel.aclose()
    await backend.delete_vm(handle)
    os.close(fd)
    return took


def instantiate(sandbox: Sandbox, directory: Path) -> float:
    """Milliseconds to instantiate and run the module in this process."""
    began = time.perf_counter()
    sandbox.run(Run(["/module.wasm"], {}, directory, lambda _: None, lambda _: None, 64 * MIB))
    return (time.perf_counter() - began) * 1000


async def measure(helper: int, configuration: HelperConfiguration, directory: Path) -> dict[str, list[float]]:
    """Both sides in turn. The first start, which compiles, and those that found no worker waiting are left out."""
    host = HelperHost(helper)
    backend = WasmBackend(host, configuration.names, CodeCache(directory / "code"), spares=1)
    sandbox = Sandbox()
    sandbox.load(MODULE, None)
    await start(backend, directory, 0)
    warm, bare = [], []
    for number in range(1, ROUNDS + 1):
        warm.append(await start(backend, directory, number))
        bare.append(instantiate(sandbox, directory))
    backend.close()
    await host.sweep(Keep())
    await host.dismantle()
    host.close()
    return {"warm": warm, "bare": bare}


def main() -> int:
    directory = Path(tempfile.mkdtemp(prefix="swg-bench-"))
    (directory / "module").write_bytes(MODULE)
    for path in (directory, directory / "module"):
        os.chown(path, NOBODY, NOBODY)
    configuration = HelperConfiguration(f"swg_{secrets.token_hex(8)}", NOBODY, NOBODY)
    helper = split(configuration)  # root's half never returns
    try:
        print(json.dumps(asyncio.run(measure(helper, configuration, directory))))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def run() -> list[Result]:
    """Measure in a process that may split."""
    told = subprocess.run([sys.executable, "-m", "bench.wasm"], check=True, capture_output=True, text=True).stdout
    samples = json.loads(told)
    warm, bare = median(samples["warm"]), median(samples["bare"])
    return [
        Result(
            "W1",
            "warm start of a WebAssembly VM, create → ready",
            warm.text(" ms"),
            f"≤ {GOAL_MS:g} ms",
            warm.value <= GOAL_MS,
            (
                f"p95 {percentile(samples['warm'], 0.95):.2f} ms; a bare instantiation in a process that has the module "
                f"takes {bare.text(' ms')}; {ROUNDS} rounds",
            ),
        )
    ]


if __name__ == "__main__":
    sys.exit(main())
