"""Taps: how long a VM's tap takes to set up (opened, and its VM admitted by the rules), for each way that frames are
checked, on a host with no other tap and on one with 500.

The ways run side by side, each with a helper in a namespace of its own; the firewall's, which has nothing to attach, is
the floor. Before each measured set-up a tap is made ahead, as a platform does when idle; how long one takes without is told.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import Result, percentile, ratio
from plasmavmc.host.operations import Member, RuleSet
from plasmavmc.types import vm_key
from tests.contract.host_parts import HostRig
from tests.contract.host_rig import real_helper, rig_of

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "40"))
MANY = 500
WAYS = ("tcx", "clsact", "nft")
FLOOR = "nft"
MOST = 1.5
"""Times the floor."""


@dataclass(slots=True)
class Side:
    """A host whose taps are guarded in one way."""

    rig: HostRig
    taps: list[int] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)

    async def fill(self, count: int) -> None:
        while len(self.taps) < count:
            await self._open()
        await self._admit()

    async def set_up(self, *, ahead: bool) -> tuple[float, float]:
        """Milliseconds until a tap is open, and until its VM is admitted too; then it goes."""
        if ahead:
            await self.rig.host.tap_make()
        began = time.perf_counter()
        await self._open()
        opened = time.perf_counter()
        await self._admit()
        done = time.perf_counter()
        os.close(self.taps.pop())
        self.members.pop()
        await self._admit()
        return (opened - began) * 1e3, (done - began) * 1e3

    async def _open(self) -> None:
        key = vm_key(f"vm_{len(self.taps)}")
        self.taps.append(await self.rig.host.tap_open(self.rig.tap(key)))
        self.members.append(self.rig.member(key, len(self.members) + 2))

    async def _admit(self) -> None:
        await self.rig.host.rules_apply(RuleSet(self.rig.bridge, tuple(self.members)))


async def _measure(root: Path) -> list[Result]:
    async with AsyncExitStack() as stack:
        sides = {}
        for way in WAYS:
            helper = await stack.enter_async_context(real_helper(root / way, guards=(way, FLOOR)))
            sides[way] = Side(rig_of(helper))
            await sides[way].rig.host.bridge_ensure(sides[way].rig.bridge)
            guarding = await sides[way].rig.host.taps_guarding()
            if guarding.by != way:
                return [Result("taps", f"set-up, {way}", "–", "this host's kernel has it", False, (guarding.lack,))]
        results = [await _beside(sides, 0)]
        for side in sides.values():
            await side.fill(MANY)
        results.append(await _beside(sides, MANY))
        for side in sides.values():
            for fd in side.taps:
                os.close(fd)
    return results


async def _beside(sides: dict[str, Side], taps: int) -> Result:
    opened: dict[str, list[float]] = {way: [] for way in sides}
    admitted: dict[str, list[float]] = {way: [] for way in sides}
    unready: dict[str, list[float]] = {way: [] for way in sides}
    for number in range(ROUNDS):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            open_ms, all_ms = await sides[way].set_up(ahead=True)
            opened[way].append(open_ms)
            admitted[way].append(all_ms)
            if number % 4 == 0:
                unready[way].append((await _without(sides[way]))[0])
    cost = ratio(opened["tcx"], opened[FLOOR])
    details = [
        f"{taps} taps, {way}: open p50 {_p(opened[way], 0.5)}, p99 {_p(opened[way], 0.99)}; with none made ahead p50"
        f" {_p(unready[way], 0.5)}; open and admitted p50 {_p(admitted[way], 0.5)}, p99 {_p(admitted[way], 0.99)}"
        for way in WAYS
    ]
    measured = f"{cost.text('×')}, p50 {_p(opened['tcx'], 0.5)}, p99 {_p(opened['tcx'], 0.99)}"
    what = f"a tap opened with tcx programs at it, {taps} others on the host, against none at it"
    row = f"taps beside {taps}"
    return Result(row, what, measured, f"≤ {MOST:g}× of p50", cost.value <= MOST, tuple(details))


async def _without(side: Side) -> tuple[float, float]:
    """A set-up that finds no tap made ahead: what waits from before is used up first."""
    held = []
    for number in range(4):
        held.append(await side.rig.host.tap_open(side.rig.tap(vm_key(f"vm_used_{number}"))))
    taken = await side.set_up(ahead=False)
    for fd in held:
        os.close(fd)
    return taken


def _p(samples: list[float], share: float) -> str:
    return f"{percentile(samples, share):.1f} ms"


def run() -> list[Result]:
    """Both sizes of host."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        for way in WAYS:
            (root / way).mkdir(mode=0o755)
        return asyncio.run(_measure(root))
