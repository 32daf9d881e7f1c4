"""`scripts/bench [p1 p4 …]`: runs the benchmarks and prints a report, of which `bench/RESULTS.md` is assembled by hand."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import import_module

from bench.measure import Result

MODULES = {
    "p1": "bench.p1_cold_start",
    "p2": "bench.p2_raw",
    "p4": "bench.p4_warm_deploy",
    "p5": "bench.p5_memory",
    "p7": "bench.p7_placement",
    "p8": "bench.p8_quality",
    "p9": "bench.p9_api",
    "p10": "bench.p10_edge",
    "p12": "bench.p12_bus",
    "p13": "bench.p13_idle",
    "p14": "bench.p14_failover",
    "p15": "bench.p15_failover",
    "p16": "bench.p16_volumes",
    "p16-zfs": "bench.p16_zfs",
    "p17": "bench.p17_cli",
    "dns": "bench.dns",
    "store": "bench.store",
    "wasm": "bench.wasm",
    "kernel": "bench.kernel",
    "taps": "bench.taps",
    "firewall": "bench.firewall",
}
HEAD = """# Benchmark results

Measured by `scripts/bench`. Figures are medians of interleaved rounds with 95 % bootstrap intervals; a ratio compares two
sides measured in turn in the same run.
"""


def host() -> str:
    """What was measured on."""
    cpus, load = os.cpu_count(), os.getloadavg()[0]
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{when} · {platform.machine()}, {cpus} CPUs, kernel {platform.release()}, load {load:.1f} before the run"


def report(where: str, results: list[Result]) -> str:
    """The report as Markdown."""
    lines = [HEAD, f"Host: {where}\n", "| row | what | measured | goal | reached |", "|---|---|---|---|---|"]
    lines += [f"| {r.row} | {r.what} | {r.measured} | {r.goal} | {'yes' if r.reached else 'no'} |" for r in results]
    for result in results:
        if result.details:
            lines += ["", f"## {result.row}", "", *(f"- {detail}" for detail in result.details)]
    return "\n".join(lines) + "\n"


def main() -> int:
    chosen = [name.lower() for name in sys.argv[1:]] or list(MODULES)
    unknown = [name for name in chosen if name not in MODULES]
    if unknown:
        print(f"bench: unknown: {', '.join(unknown)} (known: {', '.join(MODULES)})", file=sys.stderr)
        return 2
    where, results = host(), []
    for name in chosen:
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        results += import_module(MODULES[name]).run()
    print(report(where, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
