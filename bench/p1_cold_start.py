"""P1: cold start of an app, from the API's answer to the first 200 through the edge, beside the same VM started by hand."""

from __future__ import annotations

import os
from pathlib import Path

from bench.floor.hand import CACHE, SCRIPT, Hand, built_rootfs
from bench.measure import Result, difference, interleaved, median, ratio
from bench.stage import COMMAND, stage
from examples.demo.platform import qemu_processes
from plasmavmc.guest.boot import load_assets

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))


def run() -> list[Result]:
    """Both sides in turn, in both orders."""
    with stage() as ready:
        argv = Path(f"/proc/{next(iter(qemu_processes(ready.platform.key)))}/cmdline").read_text().replace("\0", " ")
        rootfs = built_rootfs(ready.platform.data_dir, ready.directory)
        ready.stop()
        with Hand(ready.directory / "hand", rootfs, COMMAND) as hand:

            def by_hand() -> float:
                took = hand.start()
                hand.stop()
                return took

            interleaved(1, ready.cold_start, by_hand)
            ours, floor = interleaved(ROUNDS, ready.cold_start, by_hand)
    share, tax = ratio(ours, floor), difference([each * 1000 for each in ours], [each * 1000 for each in floor])
    assets = load_assets(CACHE)
    return [
        Result(
            "P1",
            "cold start, API accepted → first 200 through the edge, against the same VM by hand",
            f"{share.text('×')}, tax {tax.text(' ms', 0)}",
            "≤ 1.10×, tax ≤ 50 ms",
            share.value <= 1.10 and tax.value <= 50,
            (
                f"platform {median(ours).text(' s', 3)}, by hand {median(floor).text(' s', 3)}, {ROUNDS} rounds",
                f"guest kernel {assets.kernel_release}, sha256 {assets.kernel_hash}",
                f"the platform's line: `{argv.strip()}`",
                f"the line by hand: `bench/floor/{SCRIPT.name}`",
            ),
        )
    ]
