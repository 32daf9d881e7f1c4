"""P1: cold start of an app, from the API's answer to the first 200 through the edge, beside the same VM started by hand.

The boots of the two are the same line, and on an emulated CPU they spread by hundreds of milliseconds. What the platform
adds is what happens before and after them, so the tax is told of that, by both sides' own clocks of spawn and ready.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bench.floor.hand import CACHE, SCRIPT, Hand, built_rootfs
from bench.measure import Result, difference, interleaved, median, ratio
from bench.stage import COMMAND, Stage, stage
from examples.demo.platform import qemu_processes
from plasmavmc.guest.boot import load_assets

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))


@dataclass(slots=True)
class Sides:
    """Cold starts of both sides, and the boots in them: from the spawn of QEMU to the guest's word that it is ready."""

    ready: Stage
    hand: Hand
    boots: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def ours(self) -> float:
        took = self.ready.cold_start()
        self.boots[0].append(self.ready.boots()[-1])
        return took

    def by_hand(self) -> float:
        took = self.hand.start()
        self.hand.stop()
        self.boots[1].append(self.hand.boot_s)
        return took


def run() -> list[Result]:
    """Both sides in turn, in both orders."""
    with stage() as ready:
        argv = Path(f"/proc/{next(iter(qemu_processes(ready.platform.key)))}/cmdline").read_text().replace("\0", " ")
        rootfs = built_rootfs(ready.platform.data_dir, ready.directory)
        ready.stop()
        with Hand(ready.directory / "hand", rootfs, COMMAND) as hand:
            warm = Sides(ready, hand)
            interleaved(1, warm.ours, warm.by_hand)
            sides = Sides(ready, hand)
            ours, floor = interleaved(ROUNDS, sides.ours, sides.by_hand)
    beside, beside_floor = (
        [(whole - boot) * 1000 for whole, boot in zip(wholes, boots, strict=True)]
        for wholes, boots in zip((ours, floor), sides.boots, strict=True)
    )
    share, tax = ratio(ours, floor), difference(beside, beside_floor)
    whole_tax = difference([each * 1000 for each in ours], [each * 1000 for each in floor])
    assets = load_assets(CACHE)
    return [
        Result(
            "P1",
            "cold start, API accepted → first 200 through the edge, against the same VM by hand; what it adds to the boot",
            f"{share.text('×')}, tax {tax.text(' ms', 0)}",
            "≤ 1.10×, tax ≤ 50 ms",
            share.value <= 1.10 and tax.value <= 50,
            (
                f"platform {median(ours).text(' s', 3)}, by hand {median(floor).text(' s', 3)}, {ROUNDS} rounds",
                f"of these beside the boot: platform {median(beside).text(' ms', 0)},"
                f" by hand {median(beside_floor).text(' ms', 0)}",
                f"difference of the whole, with the boots' own spread: {whole_tax.text(' ms', 0)}",
                f"guest kernel {assets.kernel_release}, sha256 {assets.kernel_hash}",
                f"the platform's line: `{argv.strip()}`",
                f"the line by hand: `bench/floor/{SCRIPT.name}`",
            ),
        )
    ]
