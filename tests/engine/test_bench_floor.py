"""The floor of the cold-start benchmark is the platform's own line: only ids, addresses, paths and descriptors differ.

`-S` is the platform's alone: its guest is let run over QMP once the channel is attached, which costs a millisecond.
"""

from __future__ import annotations

import re
import shlex
from functools import reduce
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.hypervisor.backend import DiskPlan, NicPlan
from plasmavmc.hypervisor.qemu.argv import QemuMachine, command_line
from plasmavmc.types import VmResources

FLOOR = Path(__file__).resolve().parents[2] / "bench" / "floor" / "qemu.sh"
SANDBOX = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
"""Added by the root helper."""


def floor_line() -> list[str]:
    text = FLOOR.read_text().replace("\\\n", " ")
    return shlex.split(next(line for line in text.splitlines() if line.startswith("exec /usr/bin/qemu")))[1:]


def platform_line() -> list[str]:
    machine = QemuMachine("/usr/bin/qemu-system-x86_64", "installation", Acceleration.TCG, 2_000_000)
    disks = (DiskPlan("image", -1, read_only=True), DiskPlan("layer", -1, read_only=False))
    nics = (NicPlan("n0", -1, "02:00:00:00:00:01"),)
    return [*command_line(machine, "keykeykeykey", VmResources(), disks, nics, reclaim=True).argv, *SANDBOX]


def likened(line: list[str]) -> list[str]:
    """With everything that may differ replaced by one word, and descriptors and paths made alike."""
    rules = (
        (r"^(floor|swg-\S+)$", "NAME"),
        (r"^(/dev/fd/@\w+@|\$KERNEL|\$INITRD)$", "FILE"),
        (r"^(256M|\$MEMORY)$", "MEMORY"),
        (r"acpi=(on|\$ACPI)", "acpi=ACPI"),
        (r"size=(256M|\$MEMORY)", "size=MEMORY"),
        (r"tsc_early_khz=\S+", "tsc_early_khz=KHZ"),
        (r"file\.filename=[^,]+", "file.filename=FILE"),
        (r"tap,id=n0,.*", "tap,id=n0,TAP"),
        (r"mac=[^,]+", "mac=MAC"),
        (r"socket,id=(\w+),(fd|path)=[^,]+", r"socket,id=\1,SOCKET"),
    )
    return [reduce(lambda text, rule: re.sub(*rule, text), rules, word) for word in line]


def without_descriptor_sets(line: list[str]) -> list[str]:
    """`-add-fd` opens a descriptor for a disk where the floor names a path."""
    pairs = [index for index, word in enumerate(line) if word == "-add-fd"]
    return [word for index, word in enumerate(line) if index not in pairs and index - 1 not in pairs and word != "-S"]


def test_the_floor_is_the_platforms_own_line() -> None:
    assert likened(floor_line()) == likened(without_descriptor_sets(platform_line()))
