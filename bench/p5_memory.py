"""P5: memory of a VM's process beside the same VM by hand, and what the platform itself needs for each VM more."""

from __future__ import annotations

import re
import time
from pathlib import Path

from bench.floor.hand import Hand, built_rootfs
from bench.measure import Result, median, ratio
from bench.stage import COMMAND, Stage, stage
from examples.demo.platform import qemu_processes

VMS = 8
SETTLE_S = 3.0
MIB = 1024


def private_kib(pid: int) -> float:
    """Private memory of a process, in KiB (proc(5), smaps_rollup): what it costs beyond what it shares."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(float(found) for found in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE))


def platform_kib(ready: Stage) -> float:
    """Private memory of the platform's own processes: the helper and everything else."""
    assert ready.platform.process is not None
    helper = ready.platform.process.pid
    children = Path(f"/proc/{helper}/task/{helper}/children").read_text().split()
    own = [int(child) for child in children if "qemu" not in Path(f"/proc/{child}/comm").read_text()]
    return sum(private_kib(pid) for pid in (helper, *own))


def run() -> list[Result]:
    """Idle VMs, some seconds after their start."""
    with stage() as ready:
        rootfs = built_rootfs(ready.platform.data_dir, ready.directory)
        time.sleep(SETTLE_S)
        before = platform_kib(ready)
        ready.scale(VMS)
        time.sleep(SETTLE_S)
        per_vm = (platform_kib(ready) - before) / (VMS - 1)
        ours = [private_kib(pid) for pid in qemu_processes(ready.platform.key)]
        ready.scale(1)
        floor = []
        with Hand(ready.directory / "hand", rootfs, COMMAND) as hand:
            for _ in range(VMS):
                hand.start()
                time.sleep(SETTLE_S)
                floor.append(private_kib(hand.pid))
                hand.stop()
    share = ratio(ours, floor)
    return [
        Result(
            "P5",
            "memory per VM: its process against the same VM by hand; the platform's own share",
            f"{share.text('×', 3)}, platform {per_vm / MIB:.2f} MiB/VM",
            "≤ 1.02×, ≤ 1 MiB/VM",
            share.value <= 1.02 and per_vm <= MIB,
            (f"{median(ours).value / MIB:.1f} MiB against {median(floor).value / MIB:.1f} MiB private, {VMS} VMs",),
        )
    ]
