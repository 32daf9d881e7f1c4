"""K1: boot with the kernel of our own configuration beside the distribution's, from the spawn of QEMU to the guest's ready.

The same line, init, image and disk for both. Run `plasmavmc kernel build` first.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from bench.measure import Estimate, Result, interleaved, median, ratio
from plasmavmc.guest.api import GuestReady
from plasmavmc.guest.boot import BootAssets, build_guest_for
from plasmavmc.guest.kernel import Kernel, distribution_kernel, own_kernel
from tests.host_cache import cache_directory
from tests.real.guest_vm import Parts, clone_layer, compile_app, next_of, running, squashfs

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
GOAL = 0.5
"""Twice as fast."""


async def boot(directory: Path, assets: BootAssets) -> float:
    """Seconds from the spawn until the workload runs."""
    layer = await clone_layer(directory / "layer")
    parts = Parts(directory, directory / "image", layer, 256, assets)
    began = time.monotonic()
    async with running(parts) as vm:
        await next_of(await vm.start("/app", "serve"), GuestReady)
        return time.monotonic() - began


def run() -> list[Result]:
    """Both in turn, in both orders."""
    cache = cache_directory()
    distribution, own = distribution_kernel(cache), own_kernel(cache)
    if distribution is None or own is None:
        raise RuntimeError(f"{cache} has not both kernels: run plasmavmc kernel fetch, and plasmavmc kernel build")
    with tempfile.TemporaryDirectory(prefix="swg-k1-") as name:
        directory = Path(name)
        squashfs({"app": (compile_app(directory), 0o755)}, directory / "image")
        sides = [asyncio.run(build_guest_for(cache, kernel))[0] for kernel in (own, distribution)]
        ours, theirs = (
            (lambda: asyncio.run(boot(directory, sides[0]))),
            (lambda: asyncio.run(boot(directory, sides[1]))),
        )
        interleaved(1, ours, theirs)
        fast, slow = interleaved(ROUNDS, ours, theirs)
    share = ratio(fast, slow)
    return [
        Result(
            "K1",
            "boot with the kernel of our own configuration, spawn → guest ready, against the distribution's",
            share.text("×"),
            f"≤ {GOAL}×",
            share.value <= GOAL,
            (
                f"own {_ms(median(fast))}, distribution's {_ms(median(slow))}, {ROUNDS} rounds",
                *(_about(kernel, assets) for kernel, assets in zip((own, distribution), sides, strict=True)),
            ),
        )
    ]


def _ms(found: Estimate) -> str:
    return f"{1000 * found.value:.0f} ms [{1000 * found.low:.0f}–{1000 * found.high:.0f}]"


def _about(kernel: Kernel, assets: BootAssets) -> str:
    sizes = [path.stat().st_size / (1 << 20) for path in (kernel.vmlinux, assets.initrd)]
    return f"{kernel.release}: {sizes[0]:.1f} MiB, initramfs {sizes[1]:.2f} MiB, {len(kernel.modules())} modules"
