"""Pressure on a VM, read from its cgroup."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.host.pressure import read_pressure, unified_group
from plasmavmc.types import Pressure

FULL = "full avg10=9.00 avg60=9.00 avg300=9.00 total=9\n"


def test_the_group_of_a_process_is_that_of_the_unified_hierarchy() -> None:
    assert unified_group("4:memory:/swg-a/vm-b\n1:name=x:/\n0::/swg-a/vm-b\n") == "swg-a/vm-b"
    assert unified_group("4:memory:/swg-a/vm-b\n0::/\n") == ""
    assert unified_group("4:memory:/swg-a/vm-b\n") == ""


def test_pressure_is_the_share_of_the_last_ten_seconds_in_which_something_waited(tmp_path: Path) -> None:
    for resource, percent in (("cpu", "12.50"), ("memory", "0.00"), ("io", "100.00")):
        some = f"some avg10={percent} avg60=1.00 avg300=2.00 total=3\n"
        (tmp_path / f"{resource}.pressure").write_text(some + FULL)
    assert read_pressure(tmp_path) == Pressure(cpu=0.125, memory=0.0, io=1.0)


def test_a_kernel_that_measures_none_tells_none(tmp_path: Path) -> None:
    assert read_pressure(tmp_path) is None
    for resource in ("cpu", "memory", "io"):
        (tmp_path / f"{resource}.pressure").write_text("")
    assert read_pressure(tmp_path) is None
